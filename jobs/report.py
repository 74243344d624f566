"""Write the page of a finished run again, or one page of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepseudo.cli import Positional, main, parse_plain
from finepseudo.errors import RecipeError
from finepseudo.storage.store import Store, located


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of writing pages."""

    runs: Positional[tuple[str, ...]]
    """Run directories: paths, or URIs such as s3://bucket/run. Of one: its page; of more: all side by side."""
    base: str = ""
    """The run directory that --base named when the runs were made."""
    to: str = ""
    """The file: a path, or a URI such as s3://bucket/runs.html; without it, report.html of the one run."""


def job(argv: Sequence[str]) -> None:
    """Parse, read, write, print where."""
    options = parse_plain(ReportOptions, argv, program="jobs/report.py", description=__doc__ or "")
    from finepseudo.report.beside import MOST, side_by_side
    from finepseudo.report.page import report, write_report
    from finepseudo.run import Run

    runs = [Run.at(Store(place), Store(options.base or place)) for place in options.runs]
    if not 1 <= len(runs) <= MOST:
        raise RecipeError(f"expected 1 to {MOST} run directories, got {len(runs)}")
    if not options.to:
        if len(runs) > 1:
            raise RecipeError(f"{len(runs)} run directories: --to FILE.html says where the page of all of them goes")
        print(f"page: {write_report(runs[0])}")
        return
    store, name = located(options.to)
    store.write(name, (side_by_side(runs) if len(runs) > 1 else report(runs[0])).encode())
    print(f"page: {store.uri(name)}")


if __name__ == "__main__":
    main(job)
