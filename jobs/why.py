"""Say why a clip has its label: what a run knows of it, round by round, and what it was used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepseudo.cli import Positional, main, parse_plain
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class WhyOptions:
    """Options of asking why."""

    clip: Positional[str]
    """Id of the clip, or its file, as in data.root or with it."""
    run: str
    """Run directory: a path, or a URI such as s3://bucket/run. It need not be finished."""
    base: str = ""
    """The run directory that --base named when the run was made."""


def job(argv: Sequence[str]) -> None:
    """Parse, look up, print."""
    options = parse_plain(WhyOptions, argv, program="jobs/why.py", description=__doc__ or "")
    from finepseudo.labels.why import why
    from finepseudo.run import Run

    print(why(Run.at(Store(options.run), Store(options.base or options.run)), options.clip))


if __name__ == "__main__":
    main(job)
