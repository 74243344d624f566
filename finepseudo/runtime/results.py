"""What a run found out: measures on the test videos, the pair test, quality of the labels, where the time went.

The only room that reads the truth of the test and the unlabelled videos. Axes: N videos, P pairs, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from finepseudo import artefacts, measures
from finepseudo.align import collaborate
from finepseudo.align.gallery import Gallery
from finepseudo.align.score import distances
from finepseudo.data.manifest import Video
from finepseudo.data.plan import derive
from finepseudo.recipe import digest, fingerprint
from finepseudo.runtime.stages import SECONDS, Finish, Start, Work, temperatures
from finepseudo.runtime.trainer import launch_seconds
from finepseudo.storage import Store
from finepseudo.train import checkpoint

RESULTS = "results.json"
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
    body["timing"] = _timing(work.run, shared.run)
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
    members = work.members(start.aligned)
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
        found[name] = {part: _accuracy(p_NK.numpy(), truth_N) for part, p_NK in parts.items()}
        found[name]["temperatures"] = vars(heat)
        for part, p_NK in parts.items():
            columns[f"{name}/{part}"] = p_NK.argmax(1).numpy()
    return found, pa.table(columns), dict(scores.seconds)


def _accuracy(p_NK: np.ndarray, truth_N: np.ndarray) -> dict[str, Any]:
    """Top-1, top-5, mean-class, each with its standard error; calibration error; accuracy of every class."""
    N, K = p_NK.shape
    label_N = p_NK.argmax(1)
    per_class = measures.per_class_accuracy(label_N, truth_N, K)
    counts = measures.class_counts(truth_N, K)
    top1, top5 = (measures.top_k_accuracy(p_NK, truth_N, k) for k in (1, min(5, K)))
    tested = counts > 0
    variance = per_class[tested] * (1 - per_class[tested]) / counts[tested]
    return {
        "top1": top1,
        "top1_se": measures.proportion_standard_error(top1, N),
        "top5": top5,
        "top5_se": measures.proportion_standard_error(top5, N),
        "mean_class": float(per_class[tested].mean()),
        "mean_class_se": float(np.sqrt(variance.sum()) / tested.sum()),
        "calibration_error": measures.calibration_error(p_NK.max(1), label_N == truth_N),
        "per_class": [None if not count else float(value) for value, count in zip(per_class, counts, strict=True)],
        "videos": N,
    }


def _gains(predictions: pa.Table) -> dict[str, Any]:
    """Top-1 of finepseudo minus that of every other method, on the same test videos, with its paired standard error."""
    truth_N = predictions.column("truth").to_numpy()
    found: dict[str, Any] = {}
    for part in ("f_E", "fused"):
        if f"finepseudo/{part}" not in predictions.column_names:
            continue
        right_N = (predictions.column(f"finepseudo/{part}").to_numpy() == truth_N).astype(float)
        for other in ("supervised", "supervised_2x", "pseudo_video", "pseudo_align"):
            if f"{other}/{part}" in predictions.column_names:
                gain_N = right_N - (predictions.column(f"{other}/{part}").to_numpy() == truth_N)
                se = float(gain_N.std(ddof=1) / np.sqrt(len(gain_N))) if len(gain_N) > 1 else None
                found[f"{part}, over {other}"] = {"value": float(gain_N.mean()), "se": se}
    return found


def _round(work: Work, name: str) -> dict[str, Any]:
    """Quality of the labels of one round, by the truth that labelling never saw."""
    folder = f"labels/{name}"
    rows = artefacts.read_table(work.run, folder, "labels.parquet").to_pylist()
    truth = work.manifest.truth("train")
    truth_N = np.array([truth[row["video_id"]] for row in rows])
    accepted = np.array([row["accepted"] for row in rows], bool)
    column = {key: np.array([row[key] for row in rows]) for key in ("label", "label_A", "label_E")}
    confidence = {key: np.array([row[key] for row in rows]) for key in ("confidence", "confidence_A", "confidence_E")}
    curves = {}
    for name_p, label, score in (
        ("p", "label", "confidence"), ("p_A", "label_A", "confidence_A"), ("p_E", "label_E", "confidence_E"),
    ):  # fmt: skip
        curve = measures.precision_coverage_curve(confidence[score], column[label], truth_N)
        keep = np.unique(np.linspace(0, len(curve.coverage) - 1, 50).astype(int))
        curves[name_p] = {"coverage": curve.coverage[keep].tolist(), "precision": curve.precision[keep].tolist()}
    quality = measures.label_quality(accepted, column["label"], truth_N)
    count = int(accepted.sum())
    right_accepted = column["label"][accepted] == truth_N[accepted]
    return {
        "name": name,
        "unlabelled": len(rows),
        "accepted": count,
        "coverage": quality.coverage,
        "agreement": measures.agreement(column["label_A"], column["label_E"]),
        "precision": quality.precision,
        "precision_se": measures.proportion_standard_error(quality.precision, count) if count else None,
        "precision_all": {
            key: _share(column[label] == truth_N) for key, label in
            (("p_E", "label_E"), ("p_A", "label_A"), ("p", "label"))
        },
        "precision_accepted": {
            key: _share(column[label][accepted] == truth_N[accepted]) for key, label in
            (("p_E", "label_E"), ("p_A", "label_A"), ("p", "label"))
        },
        "calibration_error": measures.calibration_error(confidence["confidence"], column["label"] == truth_N),
        "accepted_per_class": measures.class_counts(column["label"][accepted], work.manifest.num_classes).tolist(),
        "right_per_class": measures.class_counts(
            column["label"][accepted][right_accepted], work.manifest.num_classes
        ).tolist(),
        "curves": curves,
        "temperatures": json.loads(artefacts.read_part(work.run, folder, "temperatures.json")),
    }  # fmt: skip


def _share(right_N: np.ndarray) -> dict[str, float] | None:
    if not len(right_N):
        return None
    value = float(right_N.mean())
    return {"value": value, "se": measures.proportion_standard_error(value, len(right_N))}


def _pairs(work: Work, start: Start) -> dict[str, Any]:
    """Average precision of same-class pairs of held-out videos, by four scores (the paper's Fig. 1c)."""
    truth = work.manifest.truth("test")
    pretrained, aligned = (_strangers(gallery, truth) for gallery in (start.pretrained, start.aligned))
    gamma = work.recipe.align.gamma
    mean_ND = torch.nn.functional.normalize(pretrained.emb_GTD.mean(1), dim=-1)
    emb_NX = pretrained.emb_GTD.flatten(1)
    scores: dict[str, Tensor] = {
        "pooled_cosine": mean_ND @ mean_ND.T,
        "timestamp_cosine": emb_NX @ emb_NX.T,
        "dtw": -distances(pretrained.emb_GTD, pretrained.emb_GTD, gamma),
        "score": -distances(aligned.emb_GTD, aligned.emb_GTD, gamma),
    }
    label_N = np.array([truth[video_id] for video_id in pretrained.video_ids])
    if pretrained.video_ids != aligned.video_ids:
        raise AssertionError("the pair test needs the same videos before and after alignment")
    first, second = np.triu_indices(len(label_N), k=1)
    same_P = label_N[first] == label_N[second]
    video_P2 = np.stack([first, second], 1)
    found: dict[str, Any] = {"videos": len(label_N), "pairs": len(first), "same": int(same_P.sum())}
    if not 0 < same_P.sum() < len(same_P):
        return found
    for name, score_NN in scores.items():
        score_P = score_NN.numpy()[first, second]
        found[name] = {
            "value": measures.pair_average_precision(score_P, same_P),
            "se": measures.pair_ap_standard_error(score_P, same_P, video_P2, resamples=50),
        }
    return found


def _strangers(gallery: Gallery, truth: Mapping[str, int]) -> Gallery:
    return gallery.take([i for i, video_id in enumerate(gallery.video_ids) if video_id in truth])


def _timing(*stores: Store) -> dict[str, Any]:
    """Seconds of every training and pass by kind, and the share that trainers waited for clips."""
    found: dict[str, Any] = {}
    for store in dict.fromkeys(stores):
        for folder in _stages(store, "train"):
            _, _, seconds = checkpoint.read_history(store, folder)
            loop = sum(seconds.get(kind, 0.0) for kind in ("setup", "wait", "transfer", "compute", "commit"))
            seconds["launch"] = launch_seconds(store, folder)
            seconds["waiting_share"] = seconds.get("wait", 0.0) / loop if loop else 0.0
            found[folder] = seconds
        for root in ("gallery", "labels", "results"):
            for folder in _passes(store, root):
                found[folder] = json.loads(artefacts.read_part(store, folder, SECONDS))
    return found


def _stages(store: Store, folder: str) -> list[str]:
    """Folders below that hold a training's history."""
    names = store.list(folder)
    if "history" in names:
        return [folder]
    return [found for name in names for found in _stages(store, f"{folder}/{name}") if name != "snapshot"]


def _passes(store: Store, folder: str) -> list[str]:
    """Committed folders below that hold a pass's seconds."""
    names: Sequence[str] = store.list(folder)
    if SECONDS in names:
        return [folder] if artefacts.MARKER in names else []
    return [found for name in names for found in _passes(store, f"{folder}/{name}")]
