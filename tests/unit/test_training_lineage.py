"""What a training is made from: exactly the fields of the recipe that it reads, so that ablations share the rest."""

from dataclasses import replace
from typing import get_args

import pytest
from test_recipe import changed, leaves, with_leaf
from training_helpers import case, recipe, what

from finepseudo.models.table import KINETICS, PARTS, Role
from finepseudo.recipe import Augment
from finepseudo.storage.lineage import differences, plain
from finepseudo.train.stage import stage_of

EVERY = {
    "seed",
    *(f"frames.{name}" for name in ("height", "width", "crop")),
    *(f"augment.{name}" for name in ("scale_min", "cutout", "cutout_side", "gain", "colour")),
    *(f"optimiser.{name}" for name in ("weight_decay", "clip", "warmup", "precision", "blocks_per_step")),
}
GITDL = {f"gitdl.{name}" for name in ("sigma2", "tau", "hidden", "out")}
ALIGN = {f"align.{name}" for name in ("gamma", "margin", "triplet_weight", "score_weight")}
READS = {
    "gitdl_frame": EVERY | GITDL | {"models.frame", "models.frame_options"},
    "gitdl_video": EVERY | GITDL | {"models.video", "models.video_options"},
    "align": EVERY | ALIGN | {"models.frame", "models.frame_options"},
    "classify": EVERY | {"models.video", "models.video_options"},
}
# A rule binds these to another field; alone they cannot change.
BOUND = {"align.loss", "label.lag", "gitdl.video_loss", "models.frozen", "models.frozen_options"}
BOUND |= {f"optimiser.{part}_layer_decay" for part in PARTS}
BOUND |= {f"models.{role}_{field}" for role in get_args(Role) for field in ("weights", "sha256")}
PATHS = [path for path, _ in leaves(recipe()) if path not in BOUND and not path.startswith("scale.")]


def other(path, value):
    if path == "frames.crop":
        return value - 1
    if path == "data.rehearsal":
        return None
    return changed(path, value)


def asked(one, kind, how):
    """The same training as another recipe describes it."""
    given = ("folder", "plan", "plan_fingerprint", "steps", "lr", "num_classes", "score_mean", "score_std")
    return stage_of(how, *what(kind, how), **{name: getattr(one.stage, name) for name in given})


@pytest.mark.parametrize("kind", READS)
def test_lineage_is_what_the_training_reads(kind, tmp_path):
    one = case(tmp_path, kind, kind)
    committed = plain(one.stage.lineage())
    values = dict(leaves(one.recipe))
    told = set()
    for path in PATHS:
        bare = with_leaf(one.recipe, "gitdl.video_steps", 0) if path == "models.video" else one.recipe
        how = with_leaf(bare, path, other(path, values[path]))
        if how != one.recipe and differences(asked(one, kind, how).lineage(), committed):
            told.add(path)
    assert told == READS[kind] & set(PATHS)
    assert READS[kind] <= set(PATHS)


def test_plan_start_and_schedule_are_part_of_it_and_places_are_not(tmp_path):
    one = case(tmp_path, "align", "x")
    committed = plain(one.stage.lineage())
    for field, value in {"steps": 7, "lr": 0.1, "plan_fingerprint": "f", "init_digest": "d", "score_std": 3.0}.items():
        assert differences(replace(one.stage, **{field: value}).lineage(), committed), field
    for field in ("folder", "plan", "init", "max_rejected", "num_classes"):
        elsewhere = replace(one.stage, **{field: 9 if field == "num_classes" else "elsewhere"})
        assert differences(elsewhere.lineage(), committed) == [], field
    classifier = case(tmp_path, "classify", "y")
    more = replace(classifier.stage, num_classes=9).lineage()
    assert differences(more, plain(classifier.stage.lineage()))


def test_decay_over_layers_is_that_of_the_encoder_that_is_trained_and_was_always_1(tmp_path):
    models = replace(recipe().models, frame="vtn_vit_s16", video="aim_vit_b16")
    how = replace(recipe(), models=models)
    for kind, mine, others in (("align", "frame", "video"), ("classify", "video", "frame")):
        one = case(tmp_path, kind, kind, how=how)
        before = plain(one.stage.lineage())
        assert "layer_decay" not in before
        for part, said in ((mine, ["layer_decay"]), (others, [])):
            optimiser = replace(how.optimiser, **{f"{part}_layer_decay": 0.8})
            found = differences(asked(one, kind, replace(how, optimiser=optimiser)).lineage(), before)
            assert [line.split(":")[0] for line in found] == said


@pytest.mark.parametrize(("kind", "told"), [("gitdl_video", True), ("gitdl_frame", False)])
def test_the_loss_of_pre_training_is_part_of_that_of_f_E_alone(kind, told, tmp_path):  # noqa: N802
    one = case(tmp_path, kind, kind)
    gitdl = replace(one.recipe.gitdl, video_loss="tclr", skip_global=4, skip_local=2)
    found = differences(asked(one, kind, replace(one.recipe, gitdl=gitdl)).lineage(), plain(one.stage.lineage()))
    assert bool(found) is told


def test_what_pixels_an_encoder_takes_is_part_of_it_and_was_always_grey(tmp_path):
    one = case(tmp_path, "classify", "w")
    before = plain(one.stage.lineage())
    assert before["encoder"].pop("preprocessing") == {"mean": [0.45] * 3, "std": [0.225] * 3}
    assert differences(one.stage.lineage(), before) == [], "of a training before there was a choice"
    other = replace(one.stage, encoder=replace(one.stage.encoder, preprocessing=KINETICS))
    assert [line.split(":")[0] for line in differences(other.lineage(), before)] == ["encoder.preprocessing"]


def test_augmentation_in_time_is_the_plans_affair(tmp_path):
    one = case(tmp_path, "classify", "z")
    warped = replace(one.recipe, augment=replace(one.recipe.augment, warp=Augment().warp + 0.1))
    assert asked(one, "classify", warped).lineage() == one.stage.lineage()
    again = case(tmp_path, "classify", "z", how=warped)
    assert again.stage.plan_fingerprint != one.stage.plan_fingerprint
