"""The method against its baselines, its ablations and by budget of labels, over label seeds, from one pre-training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finepseudo.cli import Options, dry_run, main, parse, working_in
from finepseudo.errors import TrainingError
from finepseudo.recipe import METHODS
from finepseudo.recipes.options import words
from finepseudo.recipes.variants import Variant, variants
from finepseudo.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Options of a comparison."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the labelled/unlabelled split; everything else is the same."""
    ablations: bool = False
    """Run finepseudo without L_AT, without L_Score, without GITDL, and with the paper's fusion as well."""
    budgets: tuple[float, ...] = ()
    """Shares of labelled videos, such as 0.01 0.02 0.05 0.1 0.2: every method is run with each."""
    novel: tuple[str, ...] = ()
    """Classes that lose all labels in three more runs of finepseudo: with them filtered, unfiltered, and left out."""
    dry_run: bool = False
    """Say what would be done, at what predicted cost, and what is missing; exit code 1 where something is."""
    units: str = ""
    """File of unit costs for the prediction, as benchmarks/scale.py writes it; empty: those that finepseudo brings."""


def job(argv: Sequence[str]) -> None:
    """Parse, run everything for every seed, write the tables."""
    options = parse(CompareOptions, argv, program="jobs/compare.py", description=__doc__ or "")
    root, recipe = Store(options.run), replace(options.recipe, methods=tuple(METHODS))
    base = Store(options.base) if options.base else root.child("shared")
    runs = variants(recipe, options.seeds, ablations=options.ablations, budgets=options.budgets, novel=options.novel)
    if options.dry_run:
        print(f"{len(runs)} runs:", *(_said(root, one) for one in runs), sep="\n")
        dry_run(recipe, root, base, options.units, [one.recipe for one in runs])
        return
    from finepseudo.driver.variants import run_variants
    from finepseudo.report.comparison import tables
    from finepseudo.report.curve import budget_curve
    from finepseudo.report.page import write_report
    from finepseudo.results import Results
    from finepseudo.run import Run
    from finepseudo.runtime.executor import on_ray
    from finepseudo.runtime.gauges import Gauges
    from finepseudo.tracking.watch import watched

    found = []
    with working_in(root) as root, on_ray(recipe) as executor:
        gauges = Gauges()

        def seen(one: Variant) -> Any:
            return watched(Run.at(root.child(one.folder), base), one.recipe, gauges.publish)

        for one, results in run_variants(runs, root, base, lambda recipe: replace(executor, recipe=recipe), seen):
            found.append((one, results))
            if isinstance(results, Results):
                write_report(Run.at(root.child(one.folder), base))
    compared = tables(found, own=recipe.split.label_fraction)
    if compared.budgets:
        root.write("budgets.svg", budget_curve(compared.budgets).encode())
    root.write("compare.json", compared.to_json())
    root.write("compare.md", compared.markdown("budgets.svg").encode())
    print(compared.whole.table())
    print(f"figures: {root.uri('compare.json')}\ntables: {root.uri('compare.md')}")
    if compared.failed:
        raise TrainingError(f"{len(compared.failed)} of {len(runs)} runs have no results: {'; '.join(compared.failed)}")


def _said(root: Store, one: Variant) -> str:
    state = "has results" if root.exists(f"{one.folder}/results.json") else "to be run"
    split = one.recipe.split
    fields = {**one.fields, "split.label_fraction": split.label_fraction, "split.seed": split.seed}
    told = " ".join(shlex.join(words(name, value)) for name, value in fields.items())
    return f"  {one.folder}: {state}; {told} --methods {' '.join(one.recipe.methods)}"


if __name__ == "__main__":
    main(job)
