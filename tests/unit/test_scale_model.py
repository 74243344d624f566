"""The arithmetic of benchmarks/scale.py: what grows with what, who waits, and that it counts the rows of real plans."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finepseudo.data.manifest import Video
from finepseudo.data.plan import Sample
from finepseudo.errors import RecipeError
from finepseudo.recipes import find

PATH = Path(__file__).parents[2] / "benchmarks/scale.py"
SPEC = importlib.util.spec_from_file_location("scale", PATH)
scale = importlib.util.module_from_spec(SPEC)
sys.modules["scale"] = scale
SPEC.loader.exec_module(scale)

COSTS = scale.UnitCosts(
    machine="made up", video_frames=70, decode_kept_s=0.012, decode_once_s=0.01, decode_hit_s=0.0003, probe_s=0.02,
    render_s=0.08, embed_frame_s={"frame": 1e-4, "video": 1e-4}, pair_s=1e-7, cell_s=1e-8,
    train_frame_s={"gitdl/frame": 4e-4, "gitdl/video": 3e-4, "align/frame": 2e-4, "classify/video": 3e-4},
    align_cell_s=1e-7, plan_row_s=1e-4, label_class_s=1e-6,
)  # fmt: skip
SIZES = scale.Sizes(1120, 560, 14)
ONE = scale.Cluster()


def recipe(**parts):
    return scale.changed(find("rehearsal"), **parts)


def predict(how=None, sizes=SIZES, costs=COSTS, cluster=ONE):
    return scale.Model(how or recipe(), sizes, costs, cluster).run()


def stage(found, name):
    return next(stage for phase in found.phases for stage in phase.stages if stage.name == name)


def label(**options):
    return stage(predict(**options), "labels/finepseudo/round-1")


def options(**more):
    return scale.Options(**more)


def test_every_stage_of_the_run_is_there_once():
    names = [stage.name for phase in predict().phases for stage in phase.stages]
    assert names == [
        "probe", "train/pretrain/frame", "gallery/pretrained", "driver/distances", "train/align/frame",
        "gallery/aligned", "driver/distances", "train/pretrain/video", "train/supervise/video",
        "labels/finepseudo/round-1", "train/supervised/round-1/video", "train/finepseudo/round-1/video", "results",
        "driver/pair test",
    ]  # fmt: skip


def test_rounds_and_methods_add_their_stages():
    how = replace(
        recipe(rounds={"count": 2, "frame_rounds": 1}), methods=("supervised_2x", "pseudo_video", "finepseudo")
    )
    found = predict(how)
    names = [stage.name for phase in found.phases for stage in phase.stages]
    assert "train/finepseudo/round-1/frame" in names
    assert "train/pseudo_video/round-1/frame" not in names, "its f_A is never trained again"
    assert {"gallery/finepseudo/round-1", "labels/finepseudo/round-2", "labels/pseudo_video/round-2"} <= set(names)
    assert "labels/finepseudo/round-1" not in names, "the first pass serves all methods"
    assert stage(found, "train/supervised_2x/video").rows == 32 * (500 + 2 * 500)


@pytest.mark.parametrize("kind", ["gitdl/frame", "gitdl/video", "align/frame", "classify/video"])
@pytest.mark.parametrize("pseudo", [False, True])
def test_rows_are_those_of_a_real_plan(kind, pseudo):
    how = recipe(optimiser={"blocks_per_step": 2})
    samples = [Sample(Video(i, f"{i}", "", "", 64, 64, 64), i % 14) for i in range(56)]
    plan = scale.make_plan(how, kind, samples[:28], samples[28:] if pseudo else [], steps=3)
    found = scale.Model(how, SIZES, COSTS, ONE).training("x", kind, 3, pseudo=pseudo)
    assert found.rows == len(plan)
    frames = len(plan.rows(0, 1)[0]["frames_0"]) * (2 if kind.startswith("gitdl") else 1)
    assert scale.row_frames(how, kind) == frames
    B, T = plan.block_rows, how.frames.align
    cells = 6 * B * (B + 1) / 2 * T * T if kind == "align/frame" else 0
    assert found.work["train"] == pytest.approx(len(plan) * frames * COSTS.train_frame_s[kind] + cells * 1e-7)


def test_label_pass_grows_with_videos_gallery_and_both_lengths():
    free = replace(COSTS, embed_frame_s={"frame": 0.0, "video": 0.0}, pair_s=0.0)
    base = label(costs=free).work["score"]
    assert base == pytest.approx(1092 * 28 * 24 * 24 * 1e-8)
    half = recipe(split={"label_fraction": 0.0125})
    assert label(how=half, sizes=replace(SIZES, train=2240), costs=free).work["score"] == pytest.approx(
        2212 * 28 * 576e-8
    )
    assert label(how=recipe(split={"label_fraction": 0.05}), costs=free).work["score"] == pytest.approx(
        1064 * 56 * 576e-8
    )
    assert label(how=recipe(frames={"align": 48}), costs=free).work["score"] == pytest.approx(4 * base)


@pytest.mark.parametrize("doubled", ["N", "G", "T", "K", "N and G", "N, G and steps"])
def test_nothing_shrinks_when_a_size_doubles(doubled):
    before = predict()
    found = predict(*scale.doublings(recipe(), SIZES)[doubled])
    # A video more in the gallery is one fewer to label: of the work, only that of alignment must grow with G.
    slack = 0.03 if doubled == "G" else 1e-9
    for group, work in before.work.items():
        assert found.work[group] >= work * (1 - slack), group
    assert found.seconds >= before.seconds * (1 - slack)
    assert found.money >= before.money * (1 - slack)


def test_exponents_of_growth():
    rows = {name: values for name, *values in scale.growth(recipe(), SIZES, COSTS, ONE)}
    titles = ["decode", "train", "score", "driver", "alignment", "time", "money"]
    found = {name: dict(zip(titles, values, strict=True)) for name, values in rows.items()}
    assert found["T"]["train"] == pytest.approx(1, abs=0.3)
    assert found["T"]["alignment"] == pytest.approx(2, abs=0.05)
    assert found["N"]["train"] == 0, "the recipe's steps decide"
    assert found["N, G and steps"]["train"] == pytest.approx(1)
    assert found["K"]["driver"] > 0, "N x K probabilities"


def test_the_slower_group_bounds_and_the_others_wait():
    slow = replace(COSTS, decode_kept_s=5.0)
    found = stage(predict(costs=slow), "train/pretrain/frame")
    assert found.bound == "decode"
    assert found.idle["train"] > 0.9 > 0.5 > found.idle["decode"]
    assert found.seconds == pytest.approx(found.start + found.driver + found.work["decode"])
    assert stage(predict(), "train/pretrain/frame").bound == "train"
    assert stage(predict(costs=replace(COSTS, launch_s=1e6)), "train/pretrain/frame").bound == "start"


def test_twice_the_workers_halve_the_group_that_bounds():
    how, slow = recipe(optimiser={"blocks_per_step": 2}), replace(COSTS, decode_kept_s=5.0)
    for group, costs in (("train", COSTS), ("decode", slow)):
        one, two = (
            stage(
                predict(how, costs=costs, cluster=scale.Cluster(**{f"{group}_workers": count})), "train/pretrain/frame"
            )
            for count in (1, 2)
        )
        assert one.bound == group
        assert two.busy[group] == pytest.approx(one.busy[group] / 2)
        assert one.seconds - two.seconds == pytest.approx(one.busy[group] / 2)
    dear = replace(COSTS, cell_s=1e-5)
    one, two = (label(costs=dear, cluster=scale.Cluster(score_workers=count)) for count in (1, 2))
    assert (one.bound, two.busy["score"]) == ("score", pytest.approx(one.busy["score"] / 2))


def test_workers_beyond_the_blocks_find_nothing_to_do():
    assert label(cluster=scale.Cluster(score_workers=1000)).workers["score"] == math.ceil(1092 / 32)


def test_cores_of_a_worker_count_on_a_cpu_only():
    wide = scale.Cluster(train_cores=4)
    one, four = (stage(predict(cluster=cluster), "train/align/frame").work["train"] for cluster in (ONE, wide))
    assert four == pytest.approx(one / 4)
    gpu = replace(COSTS, device="cuda")
    assert stage(predict(costs=gpu, cluster=wide), "train/align/frame").work["train"] == pytest.approx(one)


def test_a_cache_that_holds_all_decodes_each_video_once():
    found = predict(recipe(rounds={"count": 2}))
    assert stage(found, "train/pretrain/frame").work["decode"] == pytest.approx(1120 * 0.012 + (12800 - 1120) * 0.0003)
    assert stage(found, "train/align/frame").work["decode"] == pytest.approx(4800 * 0.0003)
    assert stage(found, "labels/finepseudo/round-2").work["decode"] == pytest.approx(1092 * 0.0003)
    off = predict(recipe(scale={"cache_gib": 0.0}))
    assert stage(off, "train/align/frame").work["decode"] == pytest.approx(4800 * 0.01)
    small = stage(predict(recipe(scale={"cache_gib": 0.3})), "train/align/frame").work["decode"]
    assert 4800 * 0.0003 < small < 4800 * 0.012


def test_given_weights_are_not_trained_again():
    how = recipe(models={"video_weights": "w.safetensors", "video_sha256": "0" * 64}, gitdl={"frame_steps": 0})
    names = [stage.name for phase in predict(how).phases for stage in phase.stages]
    assert not [name for name in names if "pretrain/" in name]


def test_money_is_of_all_workers_for_the_whole_time():
    found = predict(cluster=scale.Cluster(decode_workers=2, decode_price=1.0, train_price=10.0, score_price=100.0))
    assert found.held == {"decode": 6, "train": 2, "score": 1}
    assert found.money == pytest.approx((6 * 1 + 2 * 10 + 100) * found.seconds / 3600)


def test_shared_cores_make_it_slower_and_never_faster():
    assert predict(cluster=scale.Cluster(cores=1)).seconds > predict(cluster=scale.Cluster(cores=2)).seconds
    own = [phase.seconds(ONE) for phase in predict().phases[1:]]
    two = [phase.seconds(scale.Cluster(cores=2)) for phase in predict().phases[1:]]
    assert all(a <= b for a, b in zip(own, two, strict=True))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'rehersal'; did you mean rehearsal"):
        scale.main(["rehersal"])
    with pytest.raises(RecipeError, match="--videos and --classes"):
        scale.what_if(scale.kinetics(), options())
    with pytest.raises(RecipeError, match="has no unit costs of tiny_vtn .* use --measure first"):
        scale.units_for(recipe(), options(units=tmp_path / "none.json"))
    with pytest.raises(RecipeError, match="pretrain/video: the unit costs have no gitdl/video; measure them"):
        predict(costs=replace(COSTS, train_frame_s={"gitdl/frame": 1e-4, "align/frame": 1e-4}))
    with pytest.raises(RecipeError, match="must divide"):
        predict(cluster=scale.Cluster(train_workers=2))


def test_sizes_of_the_command_line_win():
    how, sizes = scale.what_if(recipe(), options(videos=500, label_fraction=0.2, frames=8))
    assert (sizes, how.split.label_fraction, how.frames.align) == (scale.Sizes(500, 560, 14), 0.2, 8)
    how, sizes = scale.what_if(scale.kinetics(), options(videos=240000, classes=400))
    assert sizes == scale.Sizes(240000, 24000, 400)


def test_the_page_names_stages_groups_and_growth():
    page = scale.describe(recipe(), SIZES, COSTS, ONE)
    for text in ("train/pretrain/frame", "= self-train", "worker-seconds", "N, G and steps", "G = 28"):
        assert text in page
