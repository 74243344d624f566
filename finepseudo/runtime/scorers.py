"""The scoring pool: Ray actors that embed, label and evaluate by one inference path.

Decoded blocks stream from the decoding actors into the scoring actors; what comes back is small. The galleries are put
into the object store once, and every actor of a node reads them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from finepseudo.recipe import Recipe
from finepseudo.runtime import faults
from finepseudo.runtime.ingest import scoring_stream
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass, Predictor

GALLERY_DEADLINE_S = 300


def score(
    what: Pass, plan: str, num_classes: int, recipe: Recipe, run: Store, data: Store
) -> Iterator[Mapping[str, np.ndarray]]:
    """One pass of the pool over a committed plan; blocks come back in any order."""
    scale = recipe.scale
    shared = {name: ray.put(gallery) for name, gallery in what.galleries.items()}
    stream = scoring_stream(run, data, plan, recipe).map_batches(
        _Scorer,
        fn_constructor_args=(recipe, num_classes, replace(what, galleries={}), shared),
        batch_size=None,
        compute=ActorPoolStrategy(size=scale.score_workers),
        num_cpus=scale.score_cpus,
        num_gpus=scale.score_gpus or None,
        resources={scale.score_resource: 1.0} if scale.score_resource else None,
    )
    try:
        yield from cast(Any, stream.iter_batches(batch_size=None, batch_format="numpy"))
    except Exception as error:
        if (ours := faults.own(error)) is not None:
            raise ours from None
        raise


class _Scorer:
    """Actor of the pool: decoded blocks in, results of whole videos out."""

    def __init__(self, recipe: Recipe, num_classes: int, what: Pass, galleries: Mapping[str, Any]) -> None:
        torch.set_num_threads(max(1, int(recipe.scale.score_cpus)))
        device = torch.device("cuda" if recipe.scale.score_gpus else "cpu")
        there = {name: ray.get(reference, timeout=GALLERY_DEADLINE_S) for name, reference in galleries.items()}
        self.predictor = Predictor(recipe, num_classes, replace(what, galleries=there), device)

    def __call__(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.predictor.block(columns)
