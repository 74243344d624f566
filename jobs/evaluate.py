"""Evaluate a finished run again from its committed snapshots, for example with more clips per video."""

from __future__ import annotations

from collections.abc import Sequence

from finepseudo.cli import Options, logged_to, main, parse
from finepseudo.storage.store import Store


def job(argv: Sequence[str]) -> None:
    """Parse, evaluate, print. Nothing is trained: a stage that is not committed is an error."""
    options = parse(Options, argv, program="jobs/evaluate.py", description=__doc__ or "")
    run, base = Store(options.run), Store(options.base or options.run)
    from finepseudo.report.page import summary, write_report
    from finepseudo.runtime.cluster import cluster
    from finepseudo.runtime.rounds import run_rounds

    with logged_to(run), cluster(options.recipe):
        results = run_rounds(options.recipe, run, base, train=False)
    print(summary(results))
    print(f"results: {run.uri('results.json')}\npage: {write_report(run, results, base)}")


if __name__ == "__main__":
    main(job)
