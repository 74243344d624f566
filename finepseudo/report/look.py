"""Two clips side by side, locked by the path that aligns their frames; decoded and embedded here, without the pool.

Axes: T U frames of the two clips, H W pixels, C channels, D embedding, G gallery.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from finepseudo.align.gallery import Gallery
from finepseudo.align.score import distances
from finepseudo.align.softdtw import aligned, cosine_cost
from finepseudo.data.cache import ClipCache
from finepseudo.data.child import Child
from finepseudo.data.decode import Decoder
from finepseudo.data.manifest import Manifest
from finepseudo.data.plan import plan_score
from finepseudo.results import STAGE_2
from finepseudo.run import Run
from finepseudo.train.predict import Pass, Predictor


class Look:
    """A few clips, by rows of the manifest, as the run's f_A after stage 2 aligns them with labelled ones.

    Where features are stored, f_A sees these. `side` is that of the pictures shown; 0: as they are decoded for f_A.
    Raises ArtefactError: the run has not come to its end.
    """

    def __init__(self, run: Run, side: int = 0) -> None:
        recipe = run.recipe()
        self.manifest = run.manifest()
        self.gallery: Gallery = run.embeddings("aligned").gallery(run.labelled(), len(run.class_names()))
        self.frames, self.gamma = recipe.frames.align, recipe.align.gamma
        child = Child(recipe.scale.decode_deadline_s)
        decoder = Decoder(run.data(), recipe.frames.height, recipe.frames.width, ClipCache("", 0), child)
        self.pictures = replace(decoder, height=side, width=side) if side else decoder
        self.seen, where = run.seen()
        self.features = replace(decoder, data=where)
        what = Pass(frame={"f_A": run.snapshot(STAGE_2, "frame")})
        self.predictor = Predictor(recipe, self.manifest.num_classes, what, torch.device("cpu"))

    def embed(self, clip: int) -> Tensor:
        """emb_1TD. Raises DecodeError, as do the others."""
        return self.predictor.embed("f_A", self._clip(clip, self.seen, self.features)[None])

    def shown(self, clip: int) -> np.ndarray:
        """Its T frames, uint8 clip_THWC."""
        return self._clip(clip, self.manifest, self.pictures)

    def nearest(self, emb_1TD: Tensor) -> tuple[int, float]:
        """The gallery clip of the smallest distance, and that."""
        dist_G = distances(emb_1TD, self.gallery.emb_GTD, self.gamma)[0]
        member = int(dist_G.argmin())
        return int(self.manifest.rows_of([self.gallery.video_ids[member]])[0]), float(dist_G[member])

    def path(self, emb_1TD: Tensor, clip: int) -> np.ndarray:
        """Of a gallery clip, the first frame that the hard path aligns with each frame t, index_T."""
        member = self.gallery.video_ids.index(self.manifest.ids(np.array([clip]))[0])
        return np.array(aligned(cosine_cost(emb_1TD, self.gallery.emb_GTD[member : member + 1])[0]))

    def _clip(self, clip: int, manifest: Manifest, decoder: Decoder) -> np.ndarray:
        lengths = {"align_frames": self.frames, "video_frames": 0}
        (row,) = plan_score(manifest, np.array([clip]), **lengths, clips=1, block_videos=1).rows(0, 1)
        return decoder.clips(row, [row["frames_0"]])[0]
