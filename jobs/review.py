"""Which clips to label next: `export` writes a queue and a page to review it; `import` commits what was answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finepseudo.cli import Positional, main, parse_plain
from finepseudo.errors import RecipeError
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """What to do with which run."""

    verb: Positional[Literal["export", "import"]]
    """`export --run RUN --to FOLDER` writes the queue; `import --run RUN FILE` commits the answers in RUN."""
    answers: Positional[str] = ""
    """Of import: answers.json of the page, a CSV with clip and label (and new), or Label Studio's exported JSON."""
    run: str
    """Directory of a finished run: a path, or a URI."""
    base: str = ""
    """The directory that the run was started with as --base."""
    to: str = ""
    """Of export: a new folder; a path, or a URI."""
    count: int = 50
    """Of export: clips in the queue."""
    by: Literal["influence", "uncertainty", "random"] = "uncertainty"
    """Of export: by what an answer would change; the least confident labels; or any."""
    seed: int = 0
    """Of export by random."""


def job(argv: Sequence[str]) -> None:
    """Parse, export or import, print what comes next."""
    options = parse_plain(ReviewOptions, argv, program="jobs/review.py", description=__doc__ or "")
    export = options.verb == "export"
    if export and (not options.to or options.count < 1):
        raise RecipeError(
            f"expected --to FOLDER and --count of at least 1, got --to {options.to!r} --count {options.count}"
        )
    if not export and not options.answers:
        raise RecipeError("expected a file of answers, as in: jobs/review.py import --run RUN answers.json")
    from finepseudo.run import Run

    run = Run.at(Store(options.run), Store(options.base) if options.base else None)
    if export:
        from finepseudo.review.export import export_queue
        from finepseudo.review.queue import make_queue

        queue = make_queue(run, options.count, options.by, options.seed)
        for name, uri in export_queue(run, queue, options.to).items():
            print(f"{name}: {uri}")
        base = f" --base {options.base}" if options.base else ""
        print(
            f"{len(queue.clips)} clips; with the answers: jobs/review.py import --run {options.run}{base} answers.json"
        )
        return
    from finepseudo.review.answers import import_answers, sentence

    print(sentence(import_answers(run, options.answers), run))


if __name__ == "__main__":
    main(job)
