"""The method against its baselines over several label seeds, all from one pre-training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finepseudo.cli import Options, describe, logged_to, main, parse
from finepseudo.recipe import METHODS
from finepseudo.report.comparison import compare, table
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
    from finepseudo.report.page import write_report
    from finepseudo.runtime.cluster import cluster
    from finepseudo.runtime.rounds import run_rounds

    found, base = {}, Store(options.base) if options.base else root.child("shared")
    with logged_to(root), cluster(recipe):
        for seed in options.seeds:
            run = root.child(f"seed-{seed}")
            found[seed] = run_rounds(replace(recipe, split=replace(recipe.split, seed=seed)), run, base)
            write_report(run, found[seed], base)
    body = compare(found)
    root.write("compare.json", json.dumps(body, indent=1).encode())
    print(table(body))
    print(f"figures: {root.uri('compare.json')}")


if __name__ == "__main__":
    main(job)
