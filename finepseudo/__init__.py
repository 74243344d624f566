"""Fine-grained semi-supervised action recognition by temporal alignment (FinePseudo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def predict(
    videos: str | Sequence[str], run: str, *, base: str = "", window_s: float | None = None
) -> list[dict[str, Any]]:
    """The classes of videos, in this process: a row a clip, as `finepseudo.driver.predict.predict_videos` has it.

    Args:
        videos: files, folders, patterns with `*`, or URIs.
        run: directory of a finished run, or of an exported classifier.
        base: the run directory that the run shares with others, if it does.
        window_s: seconds of the windows that longer files are cut into; 0: none is; by default, by the labelled clips.
    Raises ArtefactError: the run is not finished; ManifestError: a folder or pattern has no video. A video that cannot
    be read has its reason in `error`.
    """
    import tempfile

    from finepseudo.classifier import Classifier
    from finepseudo.driver.executor import InProcess
    from finepseudo.driver.predict import find_videos, predict_videos
    from finepseudo.storage.store import Store

    classifier = Classifier.at(Store(run), Store(base) if base else None)
    found = find_videos([videos] if isinstance(videos, str) else videos)
    with tempfile.TemporaryDirectory() as work:
        executor = InProcess(classifier.recipe)
        return list(predict_videos(classifier, found, Store(work), executor, window_s))
