"""The method against its baselines over several label seeds, all from one pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finepseudo.cli import Options, describe, logged_to, main, parse
from finepseudo.recipe import METHODS
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Options of a comparison."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the labelled/unlabelled split; everything else is the same."""
    dry_run: bool = False
    """Say what would be done, and stop."""


def job(argv: Sequence[str]) -> None:
    """Parse, run every method for every seed, print the table."""
    options = parse(CompareOptions, argv, program="jobs/compare.py", description=__doc__ or "")
    root = Store(options.run)
    recipe = replace(options.recipe, methods=tuple(METHODS))
    if options.dry_run:
        print(describe(recipe, root), f"label seeds: {', '.join(map(str, options.seeds))}", sep="\n")
        return
    from finepseudo.driver.evaluate import ensure_results
    from finepseudo.driver.rounds import run_rounds
    from finepseudo.report.comparison import compare
    from finepseudo.report.page import write_report
    from finepseudo.run import Run
    from finepseudo.runtime.executor import on_ray

    results, base = {}, Store(options.base) if options.base else root.child("shared")
    with logged_to(root), on_ray(recipe) as executor:
        for seed in options.seeds:
            run = root.child(f"seed-{seed}")
            of_seed = replace(recipe, split=replace(recipe.split, seed=seed))
            results[seed] = ensure_results(run_rounds(of_seed, run, executor, base))
            write_report(Run.at(run, base))
    compared = compare(results)
    root.write("compare.json", compared.to_json())
    print(compared.table())
    print(f"figures: {root.uri('compare.json')}")


if __name__ == "__main__":
    main(job)
