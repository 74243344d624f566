"""Blocks of a plan, decoded: rows in, columns of uint8 clips (or of stored features) out, in any process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finepseudo.data.cache import ClipCache, Kept
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import FOLDER
from finepseudo.data.plan import Plan
from finepseudo.errors import DecodeError
from finepseudo.recipe import Recipe
from finepseudo.storage.store import Store, default_cache_dir, own_folder


class BlockReader:
    """Decodes blocks of a plan; a row that fails keeps its place, with its reason."""

    def __init__(self, plan: Plan, decoder: Decoder) -> None:
        self.plan, self.decoder = plan, decoder
        self.kept = Kept.of(plan, decoder.height * decoder.width * 3, decoder.cache.limit_bytes)

    @staticmethod
    def of(recipe: Recipe, data: Store, plan: Plan) -> BlockReader:
        """With the size of frames and the cache that the recipe asks for; `data` is where the videos are."""
        frames, scale = recipe.frames, recipe.scale
        pixels = plan.spec.manifest == FOLDER
        cache = ClipCache(
            scale.cache_dir or own_folder(default_cache_dir()), int(scale.cache_gib * (1 << 30)) if pixels else 0
        )
        return BlockReader(plan, Decoder(data, frames.height, frames.width, cache, Child(scale.decode_deadline_s)))

    def read(self, blocks: Iterable[int]) -> dict[str, Any]:
        """Columns row, block, clip_0 (and clip_1), error, decode_s, cache_hit of some blocks, one after the other."""
        size = self.plan.block_rows
        rows = [row for block in blocks for row in self.plan.rows(block * size, (block + 1) * size)]
        row_N = np.array([row["row"] for row in rows], np.int64)
        clips: list[np.ndarray] = []
        facts: list[tuple[str, float, bool]] = []
        for _, group in itertools.groupby(rows, key=lambda row: row["video"]):
            of_clip = list(group)  # the views of a clip, whose file is opened once
            found, error, seconds, hit = self._decode(of_clip)
            clips += found
            facts += [(error, seconds / len(of_clip), hit)] * len(of_clip)
        count = len(self.plan.columns)
        return {
            "row": row_N,
            "block": row_N // size,
            **{f"clip_{index}": np.stack(clips[index::count]) for index in range(count)},
            "error": np.array([error for error, _, _ in facts], dtype=object),
            "decode_s": np.array([seconds for _, seconds, _ in facts]),
            "cache_hit": np.array([hit for _, _, hit in facts]),
        }

    def each(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for block in range(start, stop):
            yield self.read([block])

    def _decode(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[np.ndarray], str, float, bool]:
        """What rows want of their one clip, a column after the other; reason, seconds, whether the cache had it."""
        began, hits, first = time.monotonic(), self.decoder.cache.hits, rows[0]
        wanted = [np.asarray(row[column]) for row in rows for column in self.plan.columns]
        try:
            keep = self.kept(first["sample"], first["video_id"])
            clips, error = self.decoder.clips(first, wanted, keep=keep), ""
        except DecodeError as failure:
            shape = (self.decoder.height, self.decoder.width, 3)
            clips, error = [np.zeros((len(index_T), *shape), np.uint8) for index_T in wanted], str(failure)
        return clips, error, time.monotonic() - began, self.decoder.cache.hits > hits
