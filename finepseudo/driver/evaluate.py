"""What a run found out: measures on the test videos, the pair test, quality of the labels, where the time went.

With `prepare`, the only part of the driver that reads the truth of the test and the unlabelled videos. Axes: N videos,
K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finepseudo import results
from finepseudo.data.manifest import UNKNOWN, Manifest
from finepseudo.data.plan import plan_score
from finepseudo.data.split import novel_classes
from finepseudo.driver.rounds import Start, Story
from finepseudo.driver.steps import Steps, Trained, told_of
from finepseudo.recipe import METHODS, Method, digest
from finepseudo.rehearsal import Truth, through_action
from finepseudo.results import STAGE_2, Measured, Results, RoundLabels, RoundResult, Snapshots
from finepseudo.run import RESULTS, SCORES, SECONDS, Run, data_store, pair_videos
from finepseudo.sizes import BLOCK_VIDEOS
from finepseudo.storage import artefacts, tables
from finepseudo.storage.lineage import fingerprint
from finepseudo.train.frozen_probe import probe
from finepseudo.train.predict import Pass, logits, pooled, sbar

PREDICTIONS = "predictions.parquet"
PROBE: Method = "frozen_probe"


def ensure_results(story: Story) -> Results:
    """Evaluate every method, once; the results, also written to results.json."""
    steps = story.steps
    recipe, run = steps.recipe, steps.run
    lineage = {
        "recipe": digest(recipe),
        "evaluate": asdict(recipe.evaluate),
        "split": steps.split.fingerprint,
        "methods": {name: [finish.frame.digest, finish.video.digest] for name, finish in story.finishes.items()}
        | {name: [trained.digest if trained else ""] for name, trained in _probes(story).items()},
        "version": results.VERSION,
    }
    folder = f"results/{fingerprint(lineage)}"

    def make() -> Mapping[str, bytes]:
        measured, predictions, told = _measure(story)
        found = Results(
            recipe=results.RecipeName(recipe.name, digest(recipe), recipe.seed),
            split=results.SplitCounts(
                seed=steps.split.seed,
                fingerprint=steps.split.fingerprint,
                labelled=len(steps.split.labelled),
                unlabelled=len(steps.split.unlabelled),
            ),
            manifest=results.ManifestCounts(steps.manifest.fingerprint, **steps.manifest.summary()),
            classes=list(steps.split.class_names),
            measured=measured,
            rounds={name: [_round(steps, one) for one in finish.rounds] for name, finish in story.finishes.items()},
            pairs=_pairs(steps, story.start),
            frames=_frames(steps, story.start),
            gains=_gains(predictions),
            snapshots={
                STAGE_2: _snapshots(steps, story.start.frame, story.start.video),
                **{name: _snapshots(steps, finish.frame, finish.video) for name, finish in story.finishes.items()},
            },
            prediction=_stands_by(recipe.methods),
            predictions=f"{folder}/{PREDICTIONS}",
            timing={},
        )
        return {RESULTS: found.to_json(), PREDICTIONS: artefacts.table_bytes(predictions), **told}

    artefacts.ensure(run, folder, lineage, make)
    run.delete(SCORES)
    found = Results.from_json(artefacts.read_part(run, folder, RESULTS))
    found = replace(found, timing=Run.at(run, story.shared.run).timing())
    run.write(RESULTS, found.to_json())
    return found


def _measure(story: Story) -> tuple[dict[str, Measured], pa.Table, dict[str, bytes]]:
    """One pass over test videos and judged ones, through all encoders; the frozen probe wants one over D_l as well."""
    steps, start = story.steps, story.start
    frames = {STAGE_2: (start.frame, steps.gallery(start.aligned))}
    frames |= {name: (finish.frame, finish.gallery) for name, finish in story.finishes.items()}
    videos = {STAGE_2: start.video} | {name: finish.video for name, finish in story.finishes.items()}
    # An f_A that several methods share runs once, under the digest of its weights.
    once = {frame.digest: (frame, gallery) for frame, gallery in frames.values()}
    manifest = steps.manifest
    test = steps.split.test
    test = test[manifest.truth(test) != UNKNOWN]
    # Of an open world's experiment, what could be right: the classes that have labels.
    novel = np.setdiff1d(novel_classes(manifest, steps.recipe.split), steps.label_N)
    test = test[~np.isin(manifest.truth(test), novel)]
    if not len(test):
        nothing: dict[str, Any] = {"video_id": pa.array([], pa.string()), "truth": pa.array([], pa.int64())}
        return {}, pa.table(nothing), {SECONDS: b"{}"}
    judged = start.judged()
    untaught = {name: trained.uri if trained else "" for name, trained in _probes(story).items()}
    what = Pass(
        frame={name: frame.uri for name, (frame, _) in once.items()},
        video={name: trained.uri for name, trained in videos.items()},
        pooled=untaught,
        galleries={name: gallery for name, (_, gallery) in once.items()},
        clips=steps.recipe.evaluate.clips,
    )
    scores = steps.score("evaluate", np.concatenate([test, judged.clip_N]), what)
    found = scores.columns()
    is_test_N = torch.tensor(np.isin(found["clip"], test))
    tested_N = found["clip"][is_test_N.numpy()]
    truth_N = manifest.truth(tested_N)
    measured: dict[str, Measured] = {}
    columns: dict[str, Any] = {"video_id": manifest.ids(tested_N), "truth": truth_N}
    if untaught:
        p_NK = _probed(steps, replace(what, frame={}, video={}, galleries={}), pooled(found, PROBE)[is_test_N.numpy()])
        measured[PROBE] = Measured(results.accuracy(p_NK, truth_N))
        columns[f"{PROBE}/f_E"] = p_NK.argmax(1)
    for name, (frame, _) in frames.items():
        fusion = judged.fusion(found, frame.digest, name)
        sbar_NK, logits_NK = sbar(found, frame.digest)[is_test_N], logits(found, name)[is_test_N]
        parts = {"f_E": fusion.p_E(logits_NK), "p_A": fusion.p_A(sbar_NK), "fused": fusion.p(sbar_NK, logits_NK)}
        accuracies = {part: results.accuracy(p_NK.numpy(), truth_N) for part, p_NK in parts.items()}
        measured[name] = Measured(**accuracies, fusion=fusion)
        columns |= {f"{name}/{part}": p_NK.argmax(1).numpy() for part, p_NK in parts.items()}
    return measured, pa.table(columns), told_of(scores)


def _stands_by(methods: Sequence[Method]) -> str:
    """finepseudo's prediction, or that of the last baseline, by both nets where it has both."""
    last = max(methods, key=list(METHODS).index)
    return f"{last}/fused" if METHODS[last].trains else f"{last}/f_E"


def _probes(story: Story) -> dict[Method, Trained | None]:
    """What the frozen probe looks at, if it is asked for: f_E before it saw a label; None: the stored features."""
    recipe = story.steps.recipe
    return {PROBE: None if recipe.models.frozen else story.start.untaught} if PROBE in recipe.methods else {}


def _probed(steps: Steps, what: Pass, feat_NF: np.ndarray) -> np.ndarray:
    """p_NK of test videos by the frozen probe, which is fitted on what the same pass makes of D_l."""
    found = steps.score(PROBE, steps.split.labelled, what).columns()
    place = {clip: place for place, clip in enumerate(steps.split.labelled.tolist())}
    label_G = steps.label_N[[place[clip] for clip in found["clip"].tolist()]]
    return probe(pooled(found, PROBE), label_G, feat_NF, steps.split.num_classes, steps.seed(PROBE))


def _gains(predictions: pa.Table) -> dict[str, results.Share]:
    """Top-1 of finepseudo minus that of every other method, on the same test videos."""
    columns = {name: predictions.column(name).to_numpy() for name in predictions.column_names if "/" in name}
    others = [method for method, traits in METHODS.items() if traits.baseline]
    return results.gains(columns, predictions.column("truth").to_numpy(), "finepseudo", others)


def _round(steps: Steps, name: str) -> RoundResult:
    """Quality of the labels of one round, by the truth that labelling never saw."""
    reader = Run.at(steps.run)
    table = reader.labels(name)
    columns = {item.name: table.column(item.name).to_numpy() for item in fields(RoundLabels)}
    truth_N = steps.manifest.truth(table.column("clip").to_numpy())
    known_N = truth_N != UNKNOWN
    novel = np.setdiff1d(np.arange(steps.split.num_classes), steps.label_N).tolist()
    quality = results.round_quality(
        RoundLabels(**columns), np.where(known_N, truth_N, 0), known_N, steps.split.num_classes, novel
    )
    return RoundResult(name, quality, reader.fusion(name))


def _pairs(steps: Steps, start: Start) -> results.PairTest:
    """The pair test on the held-out videos that were embedded beside D_l."""
    truth = _held_out(steps)
    if not truth:
        return results.PairTest(videos=0, pairs=0, same=0, scores={})
    pretrained, aligned = (embedded.among(truth.keys()) for embedded in (start.pretrained, start.aligned))
    if pretrained.video_ids != aligned.video_ids:
        raise AssertionError("the pair test needs the same videos before and after alignment")
    label_N = np.array([truth[video_id] for video_id in pretrained.video_ids])
    return results.pair_test(pretrained.emb_NTD, aligned.emb_NTD, label_N, steps.recipe.align.gamma)


def _frames(steps: Steps, start: Start) -> dict[str, results.FrameQuality]:
    """How far the frames of the same videos are aligned, by f_A before and after L_AV; fitted on D_l."""
    held_out, labelled = _held_out(steps), set(steps.split.labelled_ids)
    found: dict[str, results.FrameQuality] = {}
    for name, embedded in {"pretrained": start.pretrained, "aligned": start.aligned}.items():
        if not held_out:
            continue
        real, test = embedded.among(labelled), embedded.among(held_out.keys())
        label_N = np.array([held_out[video_id] for video_id in test.video_ids])
        of_real, of_test = (frame_truth(steps, videos.video_ids) for videos in (real, test))
        truth = (of_real, of_test) if of_real and of_test else None
        found[name] = results.frame_quality(real.emb_NTD, test.emb_NTD, label_N, truth)
    return found


def frame_truth(steps: Steps, video_ids: Sequence[str]) -> results.FrameTruth | None:
    """Phase and progress of the frames that `Steps.embed` shows f_A; None where the data set does not know them."""
    recipe = steps.recipe
    if recipe.data.rehearsal is None:
        return None
    every = artefacts.read_table(data_store(recipe, steps.base), "rehearsal", "truth.parquet").to_pylist()
    rows = {row.pop("video_id"): Truth(**{name: np.array(of_F) for name, of_F in row.items()}) for row in every}
    if not rows.keys() >= set(video_ids):
        return None  # the generated videos, under annotations of another hand
    row_N = steps.manifest.rows_of(video_ids)
    shown = _frames_of(steps.manifest, row_N, recipe.frames.align)
    if recipe.models.frozen:  # frames of the stored ones, and these of the file
        first_N = [row["start"] for row in tables.rows_at(steps.manifest.clips, row_N)]
        stored = _frames_of(Manifest.load(steps.run), row_N, recipe.frames.frozen)
        shown = [of_F[at_T - first] for of_F, at_T, first in zip(stored, shown, first_N, strict=True)]
    truths = [rows[video_id] for video_id in video_ids]
    return results.FrameTruth(
        phase_NT=np.stack([truth.phase_F[at_T] for truth, at_T in zip(truths, shown, strict=True)]),
        progress_NT=np.stack([through_action(truth)[at_T] for truth, at_T in zip(truths, shown, strict=True)]),
    )


def _frames_of(manifest: Manifest, row_N: np.ndarray, count: int) -> list[np.ndarray]:
    """Which frames of its file a pass shows of each clip."""
    plan = plan_score(manifest, row_N, align_frames=count, video_frames=0, clips=1, block_videos=BLOCK_VIDEOS)
    return [row["start"] + np.asarray(row["frames_0"]) for row in plan.rows(0, len(plan))]


def _held_out(steps: Steps) -> dict[str, int]:
    """Classes of the videos of the pair test."""
    row_N = pair_videos(steps.recipe, steps.manifest, steps.split.test)
    return dict(zip(steps.manifest.ids(row_N), steps.manifest.truth(row_N).tolist(), strict=True))


def _snapshots(steps: Steps, frame: Trained, video: Trained) -> Snapshots:
    inside = f"{steps.run.uri()}/"  # a run directory that moves keeps its own snapshots
    places = [trained.uri.removeprefix(inside) for trained in (frame, video)]
    return Snapshots(places[0], places[1], frame.digest, video.digest)
