"""The scoring pool: Ray actors that embed, label and evaluate by one inference path.

Decoded blocks stream from the decoding actors into the scoring actors, which commit what they find, a block a part;
what comes back is a count. The galleries are put into the object store once, and all actors of a node read them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from finepseudo.errors import ClusterError
from finepseudo.recipe import Recipe
from finepseudo.runtime import faults
from finepseudo.runtime.ingest import scoring_stream
from finepseudo.storage.store import Store
from finepseudo.train.predict import Pass, Predictor

GALLERY_DEADLINE_S = 300
STREAM_BLOCKS = 4096  # of one stream: the start of a longer one takes long


def score(
    what: Pass, plan: str, blocks: Sequence[int], num_classes: int, recipe: Recipe, run: Store, data: Store, out: str
) -> Iterator[int]:
    """One pass of the pool over blocks of a committed plan; numbers of videos, as their parts are committed."""
    scale = recipe.scale
    shared = {name: ray.put(gallery) for name, gallery in what.galleries.items()}
    for first in range(0, len(blocks), STREAM_BLOCKS):
        here = blocks[first : first + STREAM_BLOCKS]
        stream = scoring_stream(run, data, plan, here, recipe).map_batches(
            _Scorer,
            fn_constructor_args=(recipe, num_classes, replace(what, galleries={}), shared, run, out),
            batch_size=None,
            compute=ActorPoolStrategy(size=scale.score_workers),
            num_cpus=scale.score_cpus,
            num_gpus=scale.score_gpus or None,
            resources={scale.score_resource: 1.0} if scale.score_resource else None,
        )
        try:
            for done in cast(Any, stream.iter_batches(batch_size=None, batch_format="numpy")):
                yield int(done["videos"].sum())
        except Exception as error:
            if (ours := faults.own(error)) is not None:
                raise ours from None
            if faults.lost(error):
                raise ClusterError(f"workers of the pool were lost: {error}; the same command continues") from error
            raise


class _Scorer:
    """Actor of the pool: decoded blocks in, committed results of whole videos out."""

    def __init__(
        self, recipe: Recipe, num_classes: int, what: Pass, galleries: Mapping[str, Any], run: Store, out: str
    ) -> None:
        torch.set_num_threads(max(1, int(recipe.scale.score_cpus)))
        device = torch.device("cuda" if recipe.scale.score_gpus else "cpu")
        there = {name: ray.get(reference, timeout=GALLERY_DEADLINE_S) for name, reference in galleries.items()}
        self.predictor = Predictor(recipe, num_classes, replace(what, galleries=there), device)
        self.run, self.out = run, out

    def __call__(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = self.predictor.write(columns, self.run, self.out, int(columns["block"][0]))
        return {"videos": np.array([count])}
