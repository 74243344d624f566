"""What a run asks a cluster for: workers, processors, accelerators, custom resources."""

from __future__ import annotations

from finepseudo.recipe import Recipe

Need = dict[str, float]


def needed(recipe: Recipe) -> Need:
    """Resources that a run holds at the same time: two trainings with their decoders, and the pool with its own."""
    scale = recipe.scale
    need: Need = {"CPU": 0.0}

    def add(name: str, amount: float) -> None:
        if name and amount:
            need[name] = need.get(name, 0.0) + amount

    for _ in ("frame", "video"):
        add("CPU", scale.train_workers * scale.train_cpus)
        add("GPU", scale.train_workers * scale.train_gpus)
        add(scale.train_resource, scale.train_workers)
    for _ in ("frame", "video", "pool"):
        add("CPU", scale.decode_workers)
        add(scale.decode_resource, scale.decode_workers)
    add("CPU", scale.score_workers * scale.score_cpus)
    add("GPU", scale.score_workers * scale.score_gpus)
    add(scale.score_resource, scale.score_workers)
    return need
