"""The arithmetic of costs: what grows with what, who waits, and that it counts the rows of real plans."""

import json
import math
from dataclasses import replace
from pathlib import Path

import datasheet
import pytest
import scale
from clips import classed, manifest

from finepseudo.costs.model import CORE_PRICE, GPU_PRICE, Cluster, Model, Sizes, changed, growth, make_plan, stand_in
from finepseudo.costs.predict import comparison_hours
from finepseudo.costs.predict import predict as predict_all
from finepseudo.costs.resources import at_least, needed
from finepseudo.costs.units import SHIPPED, UnitCosts, fits, read_units, units_for
from finepseudo.data.cache import ROOM
from finepseudo.data.split import make_split
from finepseudo.errors import RecipeError
from finepseudo.recipe import Split
from finepseudo.recipes import PUBLISHED, find
from finepseudo.sizes import COMPARED, JUDGED
from finepseudo.storage.store import Store

COSTS = UnitCosts(
    machine="made up", source="made up", video_frames=70, decode_kept_s=0.012, decode_once_s=0.01, decode_hit_s=0.0003,
    embed_frame_s={"frame": 1e-4, "video": 1e-4}, cell_s=1e-8,
    train_frame_s={"gitdl/frame": 4e-4, "gitdl/video": 3e-4, "align/frame": 2e-4, "classify/video": 3e-4},
    plan_row_s=0.0, fusion_class_s=2e-6, label_class_s=1e-6,
)  # fmt: skip
ONE = Cluster()


def recipe(**parts):
    fields = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return changed(find("rehearsal"), fields)


def predict(how=None, sizes=None, costs=COSTS, cluster=ONE):
    return Model(how or recipe(), sizes or Sizes(), costs, cluster)


def stage(found, name):
    return next(stage for stage in found.stages if stage.name == name)


def label(**options):
    return stage(predict(**options), "labels/finepseudo/round-1")


def test_every_stage_of_the_run_is_there_once():
    assert [stage.name for stage in predict().stages] == [
        "train/pretrain/frame", "gallery/pretrained", "driver/compare", "train/align/frame", "gallery/aligned",
        "train/pretrain/video", "train/supervise/video", "referees", "labels/finepseudo/round-1",
        "train/finepseudo/round-1/video", "train/supervised/round-1/video", "results", "frozen_probe",
    ]  # fmt: skip


def test_rounds_and_methods_add_their_stages():
    how = replace(
        recipe(rounds={"count": 2, "frame_rounds": 1}), methods=("supervised_2x", "pseudo_video", "finepseudo")
    )
    found = predict(how)
    names = [stage.name for stage in found.stages]
    assert len(set(names)) == len(names)
    assert "train/finepseudo/round-1/frame" in names
    assert "train/pseudo_video/round-1/frame" not in names, "its f_A is never trained again"
    assert {"gallery/finepseudo/round-1", "labels/finepseudo/round-2", "labels/pseudo_video/round-2"} <= set(names)
    assert "labels/finepseudo/round-1" not in names, "the first pass serves all methods"
    assert stage(found, "train/supervised_2x/video").rows == 32 * (500 + 2 * 500)


def test_tclr_pays_for_two_views_of_every_local_clip():
    usual, tclr = (
        stage(predict(recipe(gitdl={"video_loss": loss, "skip_local": 1})), "train/pretrain/video")
        for loss in ("gitdl", "tclr")
    )
    assert tclr.rows == usual.rows
    assert tclr.work["train"] == pytest.approx(usual.work["train"] * (1 + 2 * 4) / 2)


def test_timebalance_trains_a_second_teacher_once():
    found = predict(replace(recipe(rounds={"count": 2}), methods=("supervised", "timebalance")))
    names = [one.name for one in found.stages if "invariant" in one.name or "timebalance" in one.name]
    assert names == [
        "train/pretrain/invariant", "train/timebalance/invariant", "labels/timebalance/targets",
        "train/timebalance/round-1/video", "train/timebalance/round-2/video",
    ]  # fmt: skip
    for ours, theirs in (("pretrain/invariant", "pretrain/video"), ("timebalance/invariant", "supervise/video")):
        assert stage(found, f"train/{ours}").work["train"] == stage(found, f"train/{theirs}").work["train"]


def test_fixmatch_pays_for_a_forward_more_of_every_row():
    found = predict(replace(recipe(), methods=("pseudo_video", "fixmatch")))
    ours, theirs = (stage(found, f"train/{name}/round-1/video") for name in ("fixmatch", "pseudo_video"))
    assert ours.rows == theirs.rows
    assert ours.work["train"] / theirs.work["train"] == pytest.approx((3e-4 + 1e-4) / 3e-4)


@pytest.mark.parametrize("kind", ["gitdl/frame", "gitdl/video", "align/frame", "classify/video"])
@pytest.mark.parametrize("pseudo", [False, True])
def test_rows_are_those_of_a_real_plan(kind, pseudo):
    how = recipe(optimiser={"blocks_per_step": 2})
    labelled, others = classed(0, 28, 14), classed(28, 56, 14) if pseudo else None
    plan = make_plan(how, kind, stand_in(56), labelled, others, steps=3)
    found = predict(how).training("x", kind, 3, pseudo=pseudo)
    assert found.rows == len(plan)
    frames = {"gitdl": 2 * how.gitdl.frames, "align": how.frames.align, "classify": how.frames.video}
    per_row = frames[kind.partition("/")[0]]
    assert found.work["train"] == pytest.approx(len(plan) * per_row * COSTS.train_frame_s[kind])


@pytest.mark.parametrize(("videos", "classes", "share"), [(1120, 14, 0.025), (1000, 7, 0.1), (50, 20, 0.01)])
def test_labelled_videos_are_those_of_a_real_split(videos, classes, share):
    every = manifest(videos, [index % classes for index in range(videos)], [f"{index}" for index in range(classes)])
    made = make_split(every, Split(label_fraction=share), Store("/nowhere"))
    found = predict(recipe(split={"label_fraction": share}), Sizes(videos=videos, classes=classes))
    assert found.sets == {"labelled": len(made.labelled), "other": len(made.unlabelled), "test": found.sizes.tests}
    assert found.gallery == len(made.labelled)
    bounded = predict(recipe(label={"per_class_max": 3}), Sizes(labelled=700))
    assert bounded.gallery == 3 * 14


def test_label_pass_grows_with_videos_gallery_and_both_lengths():
    free = replace(COSTS, embed_frame_s={"frame": 0.0, "video": 0.0})
    base = label(costs=free).work["score"]
    assert base == pytest.approx(1092 * 28 * 24 * 24 * 1e-8 * 2), "class means, and nearest members"
    for sizes, expected in (
        (Sizes(videos=2240, labelled=28), 2212 * 28 * 2 * 576e-8),
        (Sizes(labelled=56), 1064 * 56 * 2 * 576e-8),
        (Sizes(frames=48), 4 * base),
    ):
        assert label(sizes=sizes, costs=free).work["score"] == pytest.approx(expected)


def test_the_driver_compares_a_bounded_sample_once():
    pairs = [stage(predict(sizes=Sizes(20000, labelled=G)), "driver/compare").driver / 576e-8 for G in (1000, 10000)]
    assert pairs == pytest.approx([1000**2, COMPARED**2])


def test_exponents_of_growth():
    found = growth(recipe(), Sizes(), COSTS, ONE)
    for name, row in found.items():
        # A video more in the gallery is one fewer to label: of the work, only alignment must grow with G.
        least = -0.05 if name == "G" else -1e-9
        assert all(value >= least for value in row.values()), name
    assert found["T"]["train"] == pytest.approx(1)
    assert found["T"]["alignment"] == pytest.approx(2)
    assert found["G"]["alignment"] == pytest.approx(1, abs=0.05)
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
        clusters = [Cluster(**{f"{group}_workers": count}) for count in (1, 2)]
        one, two = (stage(predict(how, costs=costs, cluster=it), "train/pretrain/frame") for it in clusters)
        assert one.bound == group
        assert two.busy[group] == pytest.approx(one.busy[group] / 2)
        assert one.seconds - two.seconds == pytest.approx(one.busy[group] / 2)
    dear = replace(COSTS, cell_s=1e-5)
    one, two = (label(costs=dear, cluster=Cluster(score_workers=count)) for count in (1, 2))
    assert (one.bound, two.busy["score"]) == ("score", pytest.approx(one.busy["score"] / 2))


def test_workers_beyond_the_blocks_find_nothing_to_do():
    assert label(cluster=Cluster(score_workers=1000)).workers["score"] == math.ceil(1092 / 32)


def test_a_cache_that_holds_all_decodes_each_video_once():
    found = predict(recipe(rounds={"count": 2}))
    assert stage(found, "train/pretrain/frame").work["decode"] == pytest.approx(1120 * 0.012 + (12800 - 1120) * 0.0003)
    assert stage(found, "train/align/frame").work["decode"] == pytest.approx(4800 * 0.0003)
    assert stage(found, "labels/finepseudo/round-2").work["decode"] == pytest.approx(1092 * 0.0003)
    off = predict(recipe(scale={"cache_gib": 0.0}))
    assert stage(off, "train/align/frame").work["decode"] == pytest.approx(4800 * 0.01)
    small = predict(recipe(scale={"cache_gib": 0.3}))
    share = ROOM * 0.3 * 2**30 / (1120 * 70 * 48 * 48 * 3)
    assert 0.5 < share < 0.7
    first = 28 * (1 - share)  # labelled videos that pre-training did not leave there
    assert stage(small, "train/align/frame").work["decode"] == pytest.approx(first * 0.012 + (4800 - first) * 0.0003)
    assert stage(small, "train/supervise/video").work["decode"] == pytest.approx(500 * 32 * 0.0003)


def test_what_is_read_once_or_twice_is_not_kept():
    """Of the videos that pre-training reads once each the cache keeps none; the few labelled ones are read often."""
    once = recipe(gitdl={"frame_steps": 70, "video_steps": 70})
    found = predict(once)
    assert stage(found, "train/pretrain/frame").rows == 1120
    assert stage(found, "train/pretrain/frame").work["decode"] == pytest.approx(1120 * 0.01)
    assert stage(found, "train/align/frame").work["decode"] == pytest.approx(28 * 0.012 + (4800 - 28) * 0.0003)
    assert stage(found, "train/supervise/video").work["decode"] == pytest.approx(500 * 32 * 0.0003)
    assert label(how=once).work["decode"] == pytest.approx(1092 * 0.01)
    assert label(how=once).work["decode"] == label(how=changed(once, {"scale.cache_gib": 0.0})).work["decode"]


def test_who_decodes_makes_the_rows():
    """A training worker makes them too, within its batch; the driver makes none."""
    free, paid = predict(), predict(costs=replace(COSTS, plan_row_s=1e-3))
    for before, after in zip(free.stages, paid.stages, strict=True):
        assert after.driver == before.driver
        assert after.work.get("train") == before.work.get("train")
        assert after.work.get("decode", 0) - before.work.get("decode", 0) == pytest.approx(after.rows * 1e-3)


def test_the_driver_judges_a_bounded_sample():
    small, large = (label(sizes=Sizes(videos, labelled=28)).driver for videos in (1028, 100_028))
    assert small == pytest.approx(14 * (JUDGED * 2e-6 + 1000 * 1e-6))
    assert large == pytest.approx(14 * (JUDGED * 2e-6 + 100_000 * 1e-6))


def test_what_is_pretrained_is_the_choice_of_steps_whatever_the_weights():
    models = {"video_weights": "w.safetensors", "video_sha256": "0" * 64}
    for video_steps, expected in ((0, []), (7, ["train/pretrain/video"])):
        how = recipe(models=models, gitdl={"frame_steps": 0, "video_steps": video_steps})
        assert [stage.name for stage in predict(how).stages if "pretrain/" in stage.name] == expected


def test_money_is_of_all_workers_for_the_whole_time():
    cluster = Cluster(decode_workers=2, score_workers=3, decode_price=1.0, train_price=10.0, score_price=100.0)
    found = predict(cluster=cluster)
    tags = {"decode_resource": "decode", "train_resource": "train", "score_resource": "score"}
    asked = needed(recipe(scale={"decode_workers": 2, "score_workers": 3, **tags}))
    assert found.held == {"decode": 6, "train": 2, "score": 3} == {group: asked[group] for group in found.held}
    assert sum(found.money.values()) == pytest.approx((6 * 1 + 2 * 10 + 300) * found.seconds / 3600)


def test_a_start_needs_room_for_the_fewest_workers_that_a_training_may_have():
    def least(scale):
        how = recipe(scale={"train_workers": 3, "train_resource": "train", **scale}, optimiser={"blocks_per_step": 6})
        return needed(at_least(how))["train"]

    assert least({}) == 2 * 3
    assert least({"train_workers_min": 2}) == 2 * 2


def test_trainings_go_two_at_a_time():
    how = replace(recipe(), methods=("supervised", "pseudo_video", "pseudo_align", "finepseudo"))
    assert predict(how).phase_seconds("train 1") == pytest.approx(2 * predict().phase_seconds("train 1"))


def test_a_comparison_pre_trains_once():
    known = {fits(recipe(), "cpu"): COSTS}
    whole = predict_all(recipe(), known, Sizes())
    assert comparison_hours(whole, [recipe()]) == pytest.approx(whole.hours)
    shared = predict(recipe(gitdl={"frame_steps": 0, "video_steps": 0})).seconds / 3600
    assert shared < whole.hours
    assert comparison_hours(whole, [recipe(), recipe()]) == pytest.approx(whole.hours + shared)
    more = recipe(split={"label_fraction": 0.5})
    without = predict(changed(more, {"gitdl.frame_steps": 0, "gitdl.video_steps": 0})).seconds / 3600
    assert without != shared
    assert comparison_hours(whole, [more]) == pytest.approx(whole.hours - shared + without), "each has its own share"


def test_what_a_recipe_asks_for_and_what_it_costs():
    how = recipe(scale={"train_gpus": 1, "train_cpus": 2, "score_workers": 3, "score_gpus": 0.5, "decode_workers": 4})
    train, score = 2 * CORE_PRICE + GPU_PRICE, CORE_PRICE + 0.5 * GPU_PRICE
    assert Cluster.of(how) == Cluster(
        decode_workers=4, train_workers=1, score_workers=3, train_price=train, score_price=score
    )
    found = predict_all(how, {fits(how, "cuda"): COSTS}, Sizes())
    assert found.gpus == 2 + 1.5
    assert found.money == pytest.approx((12 * CORE_PRICE + 2 * train + 3 * score) * found.hours)


def test_unit_costs_fit_encoders_with_their_options_and_the_device_of_each_group():
    names = {
        fits(how, device)
        for how in (recipe(), recipe(models={"frame_options": {"dim": "32"}}), recipe(frames={"crop": 32}))
        for device in ("cpu", "cuda")
    }
    assert len(names) == 6
    fast = replace(COSTS, train_frame_s=dict.fromkeys(COSTS.train_frame_s, 1e-6), cell_s=1.0)
    known = {fits(recipe(), "cpu"): COSTS, fits(recipe(), "cuda"): fast}
    mixed = units_for(recipe(scale={"train_gpus": 1}), known)
    assert (mixed.train_frame_s, mixed.cell_s) == (fast.train_frame_s, COSTS.cell_s)
    assert units_for(recipe(scale={"score_gpus": 1}), known).cell_s == 1.0


def test_longer_videos_take_longer_to_decode_and_not_to_take_from_the_cache():
    long = COSTS.of_length(140)
    assert (long.decode_kept_s, long.decode_once_s) == (2 * COSTS.decode_kept_s, 2 * COSTS.decode_once_s)
    assert (long.decode_hit_s, long.video_frames) == (COSTS.decode_hit_s, 140)


def test_unit_costs_that_are_shipped_say_where_they_come_from():
    known = read_units(SHIPPED)
    assert fits(find("rehearsal"), "cpu") in known
    for name, costs in known.items():
        assert costs.source
        measured = not name.endswith("cuda")
        assert measured == ("never measured" not in costs.machine) == ("guess" not in costs.source)
    assert {units_for(find(name), known).machine for name in PUBLISHED}


def test_a_file_that_holds_no_unit_costs_is_refused(tmp_path):
    for text in ("[", "{}x", '{"a": {"speed": 3}}', "[1]"):
        (tmp_path / "u.json").write_text(text)
        with pytest.raises(RecipeError, match="u.json: no file of unit costs"):
            read_units(tmp_path / "u.json")


def test_data_sheet_arithmetic(tmp_path):
    """A step is three forward passes; twice the rate takes half the time."""
    units = tmp_path / "u.json"
    units.write_text(json.dumps({fits(recipe(), "cpu"): vars(COSTS)}))
    rates = []
    for share in (0.1, 0.2):
        datasheet.main(datasheet.Options(recipe="rehearsal", units=units, share=share))
        rates.append(read_units(units)[fits(recipe(), "cuda")])
    slow, fast = rates
    assert slow.train_frame_s["align/frame"] == pytest.approx(3 * slow.embed_frame_s["frame"])
    assert slow.train_frame_s["classify/video"] == pytest.approx(3 * slow.embed_frame_s["video"])
    assert slow.embed_frame_s["video"] == pytest.approx(2 * fast.embed_frame_s["video"])
    assert slow.decode_once_s == COSTS.decode_once_s
    with pytest.raises(RecipeError, match="has no unit costs of vtn_resnet18"):
        datasheet.main(datasheet.Options(recipe="ucf101", units=units))


def test_operations_are_those_of_the_published_encoder():
    """R(2+1)D-18 has 40.5e9 multiply-adds for 16 frames of 112 x 112."""
    video = changed(find("ucf101"), {"models.video_options": {}, "gitdl.video_steps": 0})
    assert 16 * datasheet.frame_operations(video, "video", classes=400) / 2 == pytest.approx(40.52e9, rel=0.01)


def test_shared_cores_make_it_slower_and_never_faster():
    own, two, one = (predict(cluster=Cluster(cores=cores)) for cores in (0, 2, 1))
    assert one.seconds > two.seconds
    assert all(own.phase_seconds(phase) <= two.phase_seconds(phase) for phase in own.phases)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe 'rehersal' \(did you mean 'rehearsal'"):
        scale.main(["rehersal"])
    with pytest.raises(RecipeError, match="give --sizes.videos, --sizes.classes"):
        Sizes().of(scale.kinetics())
    with pytest.raises(RecipeError, match="no unit costs of tiny_vtn .*, cpu; measure them: .* --measure"):
        units_for(recipe(), read_units(tmp_path / "none.json"))
    with pytest.raises(RecipeError, match="pretrain/video: the unit costs have no gitdl/video; measure them"):
        predict(costs=replace(COSTS, train_frame_s={"gitdl/frame": 1e-4, "align/frame": 1e-4}))
    with pytest.raises(RecipeError, match="must divide"):
        predict(cluster=Cluster(train_workers=2))


def test_sizes_that_are_given_win():
    assert Sizes().of(recipe()) == Sizes(1120, 560, 14, 28, 24)
    assert Sizes(videos=500, labelled=100, frames=8).of(recipe()) == Sizes(500, 560, 14, 100, 8)
    assert Sizes(videos=240000, classes=400).of(scale.kinetics()) == Sizes(240000, 24000, 400, 24000, 16)
    found = predict(sizes=Sizes(frames=48, steps=0.5))
    assert found.recipe.frames.video == 2 * recipe().frames.video
    assert found.recipe.gitdl.frames == 2 * recipe().gitdl.frames
    assert stage(found, "train/supervise/video").rows == 32 * 250


def test_the_page_names_stages_groups_growth_and_what_was_measured():
    page = scale.described(recipe(), Sizes(), COSTS, ONE, {"train/pretrain/frame": 12345.0})
    for text in ("train/pretrain/frame", "= train 1", "worker-seconds", "N, G and steps", "G = 28", "12,345"):
        assert text in page


def test_a_finished_run_lasts_from_the_split_on():
    log = """2026-01-01 10:00:00,000 INFO starting Ray on this machine
2026-01-01 10:01:00,000 INFO split dc88fe0012be: 42 labelled, 798 unlabelled
a line of something else
2026-01-01 10:03:30,500 INFO done
"""
    assert scale._after_split(log) == 150.5


def test_the_page_on_scaling_says_what_the_model_says(monkeypatch):
    """Of its tables those rows that are quick to make."""
    monkeypatch.setattr(scale, "VIDEOS", (240_000,))
    monkeypatch.setattr(scale, "MACHINES", (1, 64))
    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    there = {" ".join(line.split()) for line in page.splitlines()}
    rows = [" ".join(line.split()) for line in next(scale.large(scale.known_units())).splitlines()]
    assert len(rows) == 4
    assert set(rows) <= there
