"""What a run found out: measures on the test videos, the pair test, quality of the labels, where the time went.

The only room that reads the truth of the test and the unlabelled videos. Axes: N videos, P pairs, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finepseudo.align import collaborate
from finepseudo.data.manifest import Video
from finepseudo.data.plan import derive
from finepseudo.recipe import METHODS, digest
from finepseudo.results import RoundLabels, accuracy, gains, pair_test, round_quality
from finepseudo.run import RESULTS, SECONDS, Run
from finepseudo.runtime.stages import Finish, Start, Work
from finepseudo.runtime.trainer import launch_seconds
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import fingerprint
from finepseudo.train import checkpoint
from finepseudo.train.pseudo_labels import temperatures

CALIBRATION = 256
"""Unlabelled videos on which the temperatures of an evaluation are set: test videos never set anything."""


def ensure_results(work: Work, shared: Work, start: Start, finishes: Mapping[str, Finish]) -> dict[str, Any]:
    """Evaluate every method, once; the results, also written to results.json."""
    recipe = work.recipe
    lineage = {
        "recipe": digest(recipe),
        "evaluate": asdict(recipe.evaluate),
        "split": work.split.fingerprint,
        "methods": {name: [finish.frame.digest, finish.video.digest] for name, finish in finishes.items()},
    }
    folder = f"results/{fingerprint(lineage)}"

    def make() -> Mapping[str, bytes]:
        measured, predictions, seconds = _evaluate(work, start, finishes)
        body = {
            "recipe": {"name": recipe.name, "digest": digest(recipe), "seed": recipe.seed},
            "split": {
                "seed": work.split.seed,
                "fingerprint": work.split.fingerprint,
                "labelled": len(work.split.labelled),
                "unlabelled": len(work.split.unlabelled),
            },
            "manifest": {"fingerprint": work.manifest.fingerprint, **work.manifest.summary()},
            "classes": list(work.manifest.class_names),
            **measured,
            "rounds": {name: [_round(work, label) for label in finish.rounds] for name, finish in finishes.items()},
            "pairs": _pairs(work, start),
            "gains": _gains(predictions),
            "digests": {
                "stage_2": {"f_A": start.frame.digest, "f_E": start.video.digest},
                **{name: {"f_A": finish.frame.digest, "f_E": finish.video.digest} for name, finish in finishes.items()},
            },
        }
        return {
            "results.json": json.dumps(body, indent=1).encode(),
            "predictions.parquet": artefacts.table_bytes(predictions),
            SECONDS: json.dumps(seconds).encode(),
        }

    artefacts.ensure(work.run, folder, lineage, make)
    body = json.loads(artefacts.read_part(work.run, folder, "results.json"))
    body["predictions"] = f"{folder}/predictions.parquet"
    body["timing"] = _timing(Run.at(work.run, shared.run))
    work.run.write(RESULTS, json.dumps(body, indent=1).encode())
    return body


def pair_videos(work: Work) -> list[Video]:
    """Held-out videos of the pair test, the same for every f_A."""
    order = sorted(work.manifest.videos("test"), key=lambda video: derive("pairs", work.recipe.seed, video.video_id))
    return order[: work.recipe.evaluate.pair_videos]


def _evaluate(
    work: Work, start: Start, finishes: Mapping[str, Finish]
) -> tuple[dict[str, Any], pa.Table, dict[str, float]]:
    """One pass over test and calibration videos, through all encoders."""
    members = work.gallery(start.aligned)
    frames = {"stage_2": (start.frame, members)} | {name: (f.frame, f.gallery) for name, f in finishes.items()}
    by_digest = {frame.digest: (name, frame, gallery) for name, (frame, gallery) in frames.items()}
    name_of = {name: by_digest[frame.digest][0] for name, (frame, _) in frames.items()}
    videos = {"stage_2": start.video} | {name: finish.video for name, finish in finishes.items()}
    test = work.manifest.videos("test")
    calibration = sorted(work.split.unlabelled, key=lambda video_id: derive("calibration", video_id))[:CALIBRATION]
    scores = work.score(
        "evaluate", test + [work.videos[video_id] for video_id in calibration],
        frame={name: frame.uri for name, frame, _ in by_digest.values()},
        video={name: trained.uri for name, trained in videos.items()},
        galleries={name: gallery for name, _, gallery in by_digest.values()},
        clips=work.recipe.evaluate.clips,
    )  # fmt: skip
    truth = work.manifest.truth("test")
    is_test = np.array([video_id in truth for video_id in scores.video_ids])
    truth_N = np.array([truth[video_id] for video_id in scores.video_ids if video_id in truth])
    found: dict[str, Any] = {}
    columns: dict[str, Any] = {
        "video_id": [video_id for video_id in scores.video_ids if video_id in truth], "truth": truth_N,
    }  # fmt: skip
    for name in videos:
        sbar_NK = torch.from_numpy(scores[f"sbar/{name_of[name]}"])
        logits_NK = torch.from_numpy(scores[f"logits/{name}"])
        accuracy_A = start.accuracy_A
        unlabelled = ~is_test if (~is_test).any() else np.ones_like(is_test)
        heat = temperatures(sbar_NK[unlabelled], logits_NK[unlabelled], accuracy_A)
        p_A_NK = collaborate.p_align(sbar_NK[is_test], heat.tau_A)
        p_E_NK = collaborate.p_video(logits_NK[is_test], heat.tau_E)
        parts = {"f_E": p_E_NK, "p_A": p_A_NK, "fused": collaborate.fuse(p_A_NK, p_E_NK)}
        found[name] = {part: asdict(accuracy(p_NK.numpy(), truth_N)) for part, p_NK in parts.items()}
        found[name]["temperatures"] = vars(heat)
        for part, p_NK in parts.items():
            columns[f"{name}/{part}"] = p_NK.argmax(1).numpy()
    return found, pa.table(columns), dict(scores.seconds)


def _gains(predictions: pa.Table) -> dict[str, Any]:
    """Top-1 of finepseudo minus that of every other method, on the same test videos."""
    columns = {name: predictions.column(name).to_numpy() for name in predictions.column_names if "/" in name}
    others = [method for method, traits in METHODS.items() if traits.baseline]
    paired = gains(columns, predictions.column("truth").to_numpy(), "finepseudo", others)
    return {name: asdict(gain) for name, gain in paired.items()}


def _round(work: Work, name: str) -> dict[str, Any]:
    """Quality of the labels of one round, by the truth that labelling never saw."""
    reader, truth = Run.at(work.run), work.manifest.truth("train")
    table = reader.labels(name)
    columns = {item.name: table.column(item.name).to_numpy() for item in fields(RoundLabels)}
    truth_N = np.array([truth[video_id] for video_id in table.column("video_id").to_pylist()])
    quality = round_quality(RoundLabels(**columns), truth_N, work.manifest.num_classes)
    return {"name": name, **asdict(quality), "temperatures": reader.temperatures(name)}


def _pairs(work: Work, start: Start) -> dict[str, Any]:
    """The pair test on the held-out videos that were embedded beside D_l."""
    truth = work.manifest.truth("test")
    pretrained, aligned = (embedded.among(truth.keys()) for embedded in (start.pretrained, start.aligned))
    if pretrained.video_ids != aligned.video_ids:
        raise AssertionError("the pair test needs the same videos before and after alignment")
    label_N = np.array([truth[video_id] for video_id in pretrained.video_ids])
    return pair_test(pretrained.emb_NTD, aligned.emb_NTD, label_N, work.recipe.align.gamma).json()


def _timing(run: Run) -> dict[str, Any]:
    """Seconds of every training and pass by kind, and the share that trainers waited for clips."""
    timing: dict[str, Any] = {}
    for store, folder in run.trainings():
        _, _, seconds = checkpoint.read_history(store, folder)
        loop = sum(seconds.get(kind, 0.0) for kind in ("setup", "wait", "transfer", "compute", "commit"))
        seconds["launch"] = launch_seconds(store, folder)
        seconds["waiting_share"] = seconds.get("wait", 0.0) / loop if loop else 0.0
        timing[folder] = seconds
    for store, folder in run.passes():
        timing[folder] = json.loads(artefacts.read_part(store, folder, SECONDS))
    return timing
