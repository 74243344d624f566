"""What a run asks a cluster for: workers, processors, accelerators, custom resources."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finepseudo.recipe import Recipe

Need = dict[str, float]


@dataclass(frozen=True)
class Workers:
    """Workers of one kind that a run holds at the same time. Each has what it needs on one node."""

    kind: str
    count: int
    need: Need  # of each


def workers(recipe: Recipe) -> list[Workers]:
    """Those of two trainings with their decoders, and of the pool with its own."""
    scale = recipe.scale

    def kind(name: str, count: int, cpus: float, gpus: float, resource: str) -> Workers:
        need = {"CPU": float(cpus), "GPU": float(gpus), **({resource: 1.0} if resource else {})}
        return Workers(name, count, {key: amount for key, amount in need.items() if amount})

    return [
        kind("training", 2 * scale.train_workers, scale.train_cpus, scale.train_gpus, scale.train_resource),
        kind("decoding", 3 * scale.decode_workers, 1, 0, scale.decode_resource),
        kind("scoring", scale.score_workers, scale.score_cpus, scale.score_gpus, scale.score_resource),
    ]


def at_least(recipe: Recipe) -> Recipe:
    """The recipe of what a run can start with: its trainings have as few workers as they may."""
    return replace(recipe, scale=replace(recipe.scale, train_workers=recipe.scale.least_train_workers))


def needed(recipe: Recipe) -> Need:
    """All of it, by resource."""
    need: Need = {"CPU": 0.0}
    for some in workers(recipe):
        for name, amount in some.need.items():
            need[name] = need.get(name, 0.0) + some.count * amount
    return need
