"""Name the classes of videos by a finished run, or by a classifier that was exported from one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
    """JSON lines file to write, a row a clip; without it, a line a clip is printed."""
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
        count, bad = _write(rows, options.to) if options.to else _each(rows, lambda row: print(said(row)))
    if options.to:
        work.delete("")
    if bad:
        raise DecodeError(f"{bad} of {count} clips could not be read; their rows say why")


def _write(rows: Iterable[dict[str, Any]], to: str) -> tuple[int, int]:
    """The file is there whole or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as sink:
        counts = _each(rows, lambda row: sink.write(json.dumps(row) + "\n"))
        sink.flush()
        store, name = located(to)
        store.put(name, sink.name)
    return counts


def _each(rows: Iterable[dict[str, Any]], tell: Callable[[dict[str, Any]], object]) -> tuple[int, int]:
    """How many rows there were, and how many of them have a reason."""
    count = bad = 0
    for row in rows:
        count, bad = count + 1, bad + bool(row["error"])
        tell(row)
    return count, bad


def said(row: dict[str, Any]) -> str:
    """A row as a line."""
    window = "" if row["start_s"] is None else f" {row['start_s']:.1f}-{row['end_s']:.1f} s"
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
