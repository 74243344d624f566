"""Two clips side by side, locked by the path that aligns their frames; decoded and embedded here, without the pool.

Axes: T U frames of the two clips, H W pixels, C channels, D embedding, G gallery.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
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

SIDE, QUALITY = 128, 80  # of the pictures: pixels, and JPEG's quality; 24 of them are some 60 KiB


def strip(clip_THWC: np.ndarray) -> str:
    """Frames side by side as JPEG, in base64."""
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(list(clip_THWC), axis=1)).save(sink, format="JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(sink.getvalue()).decode()


class Look:
    """A few clips, by rows of the manifest, as the run's f_A after stage 2 aligns them with labelled ones.

    Where features are stored, f_A sees these.
    Raises ArtefactError: the run has not come to its end.
    """

    def __init__(self, run: Run) -> None:
        recipe = run.recipe()
        self.manifest = run.manifest()
        self.gallery: Gallery = run.embeddings("aligned").gallery(run.labelled(), len(run.class_names()))
        self.frames, self.gamma = recipe.frames.align, recipe.align.gamma
        child = Child(recipe.scale.decode_deadline_s)
        decoder = Decoder(run.data(), recipe.frames.height, recipe.frames.width, ClipCache("", 0), child)
        self.pictures = replace(decoder, height=SIDE, width=SIDE)
        self.seen, where = run.seen()
        self.features = replace(decoder, data=where)
        what = Pass(frame={"f_A": run.snapshot(STAGE_2, "frame")})
        self.predictor = Predictor(recipe, self.manifest.num_classes, what, torch.device("cpu"))

    def embed(self, clip: int) -> Tensor:
        """emb_1TD. Raises DecodeError, as do the others."""
        return self.predictor.embed("f_A", self._clip(clip, self.seen, self.features)[None])

    def shown(self, clip: int) -> np.ndarray:
        """Its T frames as pictures of SIDE pixels, uint8 clip_THWC."""
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
