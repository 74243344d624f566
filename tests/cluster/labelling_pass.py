"""A driver for test_hosts.py: a labelling pass on the cluster of RAY_ADDRESS; its gallery is seen on links.

    python tests/cluster/labelling_pass.py s3://bucket/run

Prints the bytes of what a pass moves. Axes: N videos, G gallery, T frames, D embedding.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from finepseudo import rehearsal
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.data.child import answer
from finepseudo.data.manifest import CLIPS, Manifest
from finepseudo.data.plan import plan_score
from finepseudo.driver.passes import run_pass
from finepseudo.models import weights
from finepseudo.recipe import Frames
from finepseudo.recipes import find
from finepseudo.runtime.executor import on_ray
from finepseudo.sizes import BLOCK_VIDEOS
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.initial import random_encoder
from finepseudo.train.predict import Pass

N, G, CLASSES = 8 * BLOCK_VIDEOS, 16_000, 8_000  # parts and gallery are the more bytes, pixels the fewer
SCORERS = 3

base = find("rehearsal_smoke")
recipe = replace(
    base,
    frames=Frames(height=24, width=24, crop=16, align=12, video=8),
    scale=replace(
        base.scale, train_cpus=0, decode_resource="decode", score_resource="score", score_workers=SCORERS, cache_gib=0.0
    ),
)


def manifest(data):
    """Clips that are all of one file."""
    video_id, _ = rehearsal.video_ids(recipe.data.rehearsal, "train")[0]
    clip = rehearsal.clip(recipe.data.rehearsal, "train", video_id)
    data.write("0.mp4", rehearsal.encode_mp4(clip.frames, recipe.data.rehearsal.fps))
    found = answer({"uri": data.uri("0.mp4")})[0]
    file = {"path": "0.mp4", "start": 0, "file_frames": found["num_frames"], "split": "train", "status": "ok", **found}
    rows = [{"video_id": f"v{number:03d}", **file} for number in range(N)]
    names = tuple(f"class {number}" for number in range(CLASSES))
    made = Manifest(pa.Table.from_pylist(rows, CLIPS), pa.chunked_array([pa.nulls(N, pa.int32())]), names)
    parts = {"clips": made.clips, "labels": pa.table([made.label], ["label"])}
    parts = {f"{name}.parquet": artefacts.table_bytes(table) for name, table in parts.items()}
    artefacts.commit(run, "manifest", {**parts, "classes.json": json.dumps(names).encode()}, {})
    return made


def snapshot(part):
    """Of random weights; f_A with a head that scores."""
    chosen = recipe.models.encoder(part)
    encoder = random_encoder(chosen, num_classes=CLASSES, size=recipe.frames.crop, seed=0)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    if part == "frame":
        head = ScoreHead()
        head.standardise(0.5, 0.1)
        state |= {f"score.{name}": value for name, value in head.state_dict().items()}
    data = weights.to_bytes(state, {})
    artefacts.commit(run, f"train/{part}/snapshot", {"weights.safetensors": data}, {})
    return run.uri(f"train/{part}/snapshot"), len(data)


def gallery():
    T, D = recipe.frames.align, recipe.models.encoder("frame").options.dim
    emb_GTD = torch.nn.functional.normalize(torch.randn(G, T, D), dim=-1)
    return Gallery(emb_GTD, torch.arange(G) % CLASSES, tuple(map(str, range(G))), CLASSES)


run = Store(sys.argv[1])
data = run.child("data")
made, members = manifest(data), gallery()
(frame, frame_bytes), (video, video_bytes) = map(snapshot, ("frame", "video"))
what = Pass(frame={"f_A": frame}, video={"f_E": video}, galleries={"f_A": members})
T = recipe.frames
plan = plan_score(made, np.arange(N), align_frames=T.align, video_frames=T.video, clips=1, block_videos=BLOCK_VIDEOS)
with on_ray(recipe) as executor:
    scores = run_pass(
        "label", what, plan, np.arange(N), "scores/label", recipe=recipe, manifest=made,
        num_classes=made.num_classes, run=run, data=data, executor=executor,
    )  # fmt: skip
assert not scores.rejected
moved = {
    "videos": N,
    "gallery": members.emb_GTD.nbytes,
    "pixels": N * (T.align + T.video) * T.height * T.width * 3,
    "weights": frame_bytes + video_bytes,
    "parts": sum(size for name, size in run.sizes("scores/label").items() if name.endswith(".safetensors")),
}
sys.stdout.write(json.dumps(moved))
