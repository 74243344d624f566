"""Run, or continue, a whole recipe: data, pre-training, stage 2, rounds of self-training, evaluation, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepseudo.cli import Options, dry_run, main, parse, working_in
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Options of a run."""

    dry_run: bool = False
    """Say what would be done, by what, at what predicted cost, and what is missing; exit code 1 where something is."""
    units: str = ""
    """File of unit costs for the prediction, as benchmarks/scale.py writes it; empty: those that finepseudo brings."""


def job(argv: Sequence[str]) -> None:
    """Parse, run, print what was learned."""
    options = parse(RunOptions, argv, program="jobs/run.py", description=__doc__ or "")
    run, base = Store(options.run), Store(options.base or options.run)
    if options.dry_run:
        dry_run(options.recipe, run, base, options.units)
        return
    from finepseudo.driver.evaluate import ensure_results
    from finepseudo.driver.rounds import run_rounds
    from finepseudo.report.page import write_report
    from finepseudo.report.summary import summary
    from finepseudo.run import Run
    from finepseudo.runtime.executor import on_ray
    from finepseudo.runtime.gauges import Gauges
    from finepseudo.tracking.watch import watched

    with (
        working_in(run) as run,
        on_ray(options.recipe) as executor,
        watched(Run.at(run, base), options.recipe, Gauges().publish),
    ):
        results = ensure_results(run_rounds(options.recipe, run, executor, base))
    print(summary(results))
    print(f"results: {run.uri('results.json')}\npage: {write_report(Run.at(run, base))}")


if __name__ == "__main__":
    main(job)
