"""Evaluate a finished run again from its committed snapshots, for example with more clips per video."""

from __future__ import annotations

from collections.abc import Sequence

from finepseudo.cli import Options, main, parse, working_in
from finepseudo.storage.store import Store


def job(argv: Sequence[str]) -> None:
    """Parse, evaluate, print. Nothing is trained: a stage that is not committed is an error."""
    options = parse(Options, argv, program="jobs/evaluate.py", description=__doc__ or "")
    run, base = Store(options.run), Store(options.base or options.run)
    from finepseudo.driver.evaluate import ensure_results
    from finepseudo.driver.rounds import run_rounds
    from finepseudo.report.page import write_report
    from finepseudo.report.summary import summary
    from finepseudo.run import Run
    from finepseudo.runtime.executor import on_ray

    with working_in(run) as run, on_ray(options.recipe) as executor:
        results = ensure_results(run_rounds(options.recipe, run, executor, base, train=False))
    print(summary(results))
    print(f"results: {run.uri('results.json')}\npage: {write_report(Run.at(run, base))}")


if __name__ == "__main__":
    main(job)
