"""Blocks of a plan, decoded: rows in, columns of uint8 clips out, in any process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.plan import Plan
from finepseudo.errors import DecodeError
from finepseudo.recipe import Recipe
from finepseudo.storage.store import Store, default_cache_dir


class BlockReader:
    """Decodes blocks of a plan; a row that fails keeps its place, with its reason."""

    def __init__(self, plan: Plan, decoder: Decoder) -> None:
        self.plan, self.decoder = plan, decoder
        self.columns = plan.columns

    @staticmethod
    def of(recipe: Recipe, data: Store, plan: Plan) -> BlockReader:
        """With the size of frames and the cache that the recipe asks for; `data` is where the videos are."""
        frames, scale = recipe.frames, recipe.scale
        cache = ClipCache(scale.cache_dir or default_cache_dir(), int(scale.cache_gib * (1 << 30)))
        return BlockReader(plan, Decoder(data, frames.height, frames.width, cache, Child(scale.decode_deadline_s)))

    def read(self, blocks: Iterable[int]) -> dict[str, Any]:
        """Columns row, block, clip_0 (and clip_1), error, decode_s, cache_hit of some blocks, one after the other."""
        size = self.plan.block_rows
        rows = [row for block in blocks for row in self.plan.rows(block * size, (block + 1) * size)]
        decoded = [self._decode(row) for row in rows]
        row_N = np.array([row["row"] for row in rows], np.int64)
        columns: dict[str, Any] = {"row": row_N, "block": row_N // size}
        for index in range(len(self.columns)):
            columns[f"clip_{index}"] = np.stack([item[0][index] for item in decoded])
        columns["error"] = np.array([item[1] for item in decoded], dtype=object)
        columns["decode_s"] = np.array([item[2] for item in decoded])
        columns["cache_hit"] = np.array([item[3] for item in decoded])
        return columns

    def each(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for block in range(start, stop):
            yield self.read([block])

    def _decode(self, row: Mapping[str, Any]) -> tuple[list[np.ndarray], str, float, bool]:
        began, hits = time.monotonic(), self.decoder.cache.hits
        try:
            clips, error = self.decoder.clips(row, self.columns), ""
        except DecodeError as failure:
            shape = (self.decoder.height, self.decoder.width, 3)
            clips = [np.zeros((len(row[name]), *shape), np.uint8) for name in self.columns]
            error = str(failure)
        return clips, error, time.monotonic() - began, self.decoder.cache.hits > hits
