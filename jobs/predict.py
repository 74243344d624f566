"""Name the classes of videos by a finished run, or by a classifier that was exported from one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finepseudo.cli import Positional, main, parse_plain
from finepseudo.errors import DecodeError, RecipeError
from finepseudo.recipe import Scale
from finepseudo.storage.store import Store, located


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to predict by what."""

    videos: Positional[tuple[str, ...]]
    """Files, folders, patterns such as 'clips/*.mp4', or URIs such as s3://bucket/clips."""
    run: str
    """Directory of a finished run, or of an exported classifier."""
    base: str = ""
    """The run directory that the run shares with others, if it does."""
    to: str = ""
    """File to write, a row a clip: .csv, .parquet or .jsonl; without it, a line a clip is printed."""
    window_s: float | None = None
    """Seconds of the windows that longer files are cut into; 0: none is cut. By default, files of more than twice the
    longest labelled clip, into windows of the length of a typical one, each half in the next."""
    pool: bool = False
    """Score by the actor pool of the Ray cluster (--scale.*), for many videos; otherwise in this process."""
    scale: Scale = field(default_factory=Scale)


def job(argv: Sequence[str]) -> None:
    """Parse, predict, print or write."""
    options = parse_plain(PredictOptions, argv, program="jobs/predict.py", description=__doc__ or "")
    if options.pool and not options.to:
        raise RecipeError("--pool: expected --to FILE too, beside which the workers keep their parts")
    from finepseudo.classifier import Classifier
    from finepseudo.driver.executor import InProcess
    from finepseudo.driver.predict import find_videos, predict_videos
    from finepseudo.labels.predictions import ending_of

    if options.to:
        ending_of(options.to)  # before the work
    classifier = Classifier.at(Store(options.run), Store(options.base) if options.base else None)
    classifier = replace(classifier, recipe=replace(classifier.recipe, scale=options.scale))
    with ExitStack() as stack:
        if options.pool:
            from finepseudo.runtime.executor import on_ray

            executor = stack.enter_context(on_ray(classifier.recipe))
        else:
            executor = InProcess(classifier.recipe)
        work = Store(f"{options.to}.work" if options.to else stack.enter_context(tempfile.TemporaryDirectory()))
        rows = predict_videos(classifier, find_videos(options.videos), work, executor, options.window_s)
        counts = Counts()
        if options.to:
            _write(counts.of(rows), options.to)
        else:
            for row in counts.of(rows):
                print(said(row))
    if options.to:
        work.delete("")
    if counts.bad:
        raise DecodeError(f"{counts.bad} of {counts.every} clips could not be read; their rows say why")


@dataclass
class Counts:
    """How many rows there were, and how many of them have a reason."""

    every: int = 0
    bad: int = 0

    def of(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, counted."""
        for row in rows:
            self.every, self.bad = self.every + 1, self.bad + bool(row["error"])
            yield row


def _write(rows: Iterable[dict[str, Any]], to: str) -> None:
    """The file is there whole or not at all."""
    from finepseudo.labels.predictions import ending_of, write_predictions

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "rows"
        write_predictions(rows, ending_of(to), made)
        store, name = located(to)
        store.put(name, str(made))


def said(row: dict[str, Any]) -> str:
    """A row as a line."""
    window = "" if row["start_s"] is None else f" {row['start_s']:.1f}-{row['end_s']:.1f} s"
    if row["start_s"] is None and row["first_frame"] is not None:
        window = f" frames {row['first_frame']} to {row['first_frame'] + row['num_frames']}"
    if row["error"]:
        return f"{row['video']}{window}: not read: {row['error']}"
    likely = ", ".join(f"{one['label']} {one['p']:.2f}" for one in row["top"][:3])
    label = "" if row["known"] else f"{row['label']}, nothing labelled aligns with it; else "
    nearest = row["near"][0]
    times = "" if nearest["start_s"] is None else f" {nearest['start_s']:.1f}-{nearest['end_s']:.1f} s"
    near = f"nearest {nearest['file']}{times} ({nearest['label']}, S {nearest['alignability']:.2f})"
    return f"{row['video']}{window}: {label}{likely}; {near}"


if __name__ == "__main__":
    main(job)
