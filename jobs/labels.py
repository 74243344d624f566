"""Take the labels of a run home: a row for each unlabelled clip, as a table or in the form of another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from finepseudo.cli import Positional, main, named, parse_plain
from finepseudo.recipe import Method
from finepseudo.storage.store import Store

FormName = Literal["csv", "parquet", "jsonl", "label-studio", "fiftyone", "cleanlab"]


@dataclass(frozen=True, kw_only=True)
class LabelsOptions:
    """Options of taking labels home."""

    what: Positional[Literal["export"]]
    """What to do with them: write them somewhere else."""
    run: str
    """Run directory: a path, or a URI such as s3://bucket/run. It need not be finished."""
    base: str = ""
    """The run directory that --base named when the run was made."""
    to: str
    """File, or for label-studio and fiftyone a folder: a path, or a URI such as s3://bucket/labels.parquet."""
    form: Annotated[FormName | None, named("as")] = None
    """Form; not needed for a file that ends in .csv, .parquet or .jsonl. cleanlab's file ends in .npz."""
    method: Method | None = None
    """Whose labels; without it, of the method that the run's prediction is by."""
    force: bool = False
    """Replace what is there."""


def job(argv: Sequence[str]) -> None:
    """Parse, write, print where."""
    options = parse_plain(LabelsOptions, argv, program="jobs/labels.py", description=__doc__ or "")
    from finepseudo.labels.export import export, form_of
    from finepseudo.labels.outcome import Outcome
    from finepseudo.run import Run

    form = form_of(options.to, options.form)
    run = Run.at(Store(options.run), Store(options.base or options.run))
    print(*export(Outcome(run, options.method), options.to, form, force=options.force), sep="\n")


if __name__ == "__main__":
    main(job)
