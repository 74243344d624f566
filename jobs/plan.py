"""The sizes of a Kubernetes overlay for a recipe, by the cost model: pods of each group, predicted hours and money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finepseudo.cli import RecipeOptions, main, parse
from finepseudo.costs.model import Sizes
from finepseudo.errors import RecipeError
from finepseudo.recipes import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RecipeOptions):
    """What to plan for."""

    infra: str = ""
    """TOML file: what a pod of each group has, and what it costs; cluster/overlays/gpu/infra.toml is one."""
    to: str = ""
    """File to write, such as sizes.yaml of an overlay; empty: the standard output."""
    units: str = ""
    """File of unit costs, as benchmarks/scale.py writes it; empty: those that finepseudo brings."""
    sizes: Sizes = field(default_factory=Sizes)
    """Of the data set, where it is not a public one: --sizes.videos and --sizes.classes."""


def job(argv: Sequence[str]) -> None:
    """Parse, predict, write."""
    options = parse(PlanOptions, argv, program="jobs/plan.py", description=__doc__ or "")
    if not options.infra:
        raise RecipeError("--infra: expected a file that says what pods have, as cluster/overlays/gpu/infra.toml")
    from finepseudo.costs.pods import read_infra, sizes_yaml
    from finepseudo.costs.predict import predict, predict_published
    from finepseudo.costs.units import known_units

    recipe, known = options.recipe, known_units(Path(options.units) if options.units else None)
    infra, published = read_infra(Path(options.infra)), PUBLISHED.get(recipe.name)
    if published is not None and not options.sizes.videos:
        predicted = predict_published(recipe, published, known)
    else:
        predicted = predict(recipe, known, options.sizes)
    said = (
        f"Sizes of {recipe.name}, by jobs/plan.py from {Path(options.infra).name}; what is changed here, it overwrites."
    )
    text = sizes_yaml(recipe, infra, predicted, said)
    if options.to:
        Path(options.to).write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main(job)
