"""Encoders by name: a wrong name, option or value is answered before anything is built."""

import pytest

from finepseudo.errors import RecipeError
from finepseudo.models.encoders import build
from finepseudo.models.table import ENCODERS, choose
from finepseudo.recipe import Gitdl, Models, Recipe


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("name", ENCODERS)
def test_every_entry_is_a_class_of_this_package_that_takes_its_options(name):
    assert ENCODERS[name].made_by.startswith("finepseudo.models.")
    module = build(choose(name), num_classes=3, size=32, seed=0)
    assert type(module).__name__ == ENCODERS[name].made_by.partition(":")[2]


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(RecipeError, match=r"'vtn_resnet'.*did you mean 'vtn_resnet50' or 'vtn_resnet18'") as caught:
        choose("vtn_resnet")
    assert all(name in str(caught.value) for name in ENCODERS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny_vtn", {"position": "none"}, r"no option 'position' .*'positions'.*choices are dim, positions"),
        ("tiny_vtn", {"positions": "learned"}, "option positions: expected none, sinusoidal, got 'learned'"),
        ("tiny_vtn", {"dim": "0"}, "option dim: expected at least 1, got 0"),
        ("tiny_vtn", {"dim": "wide"}, "option dim: expected int, got 'wide'"),
        ("tiny_r2plus1d", {"dropout": "0.95"}, "option dropout: expected from 0 to 0.9, got 0.95"),
        ("r2plus1d_18", {"temporal_stride_1": "yes"}, "option temporal_stride_1: expected true or false, got 'yes'"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(RecipeError, match=f"encoder '{name}'.*{message}"):
        choose(name, options)


def test_options_are_read_as_their_type():
    options = choose("tiny_vtn", {"dim": "32", "positions": "sinusoidal"}).options
    assert (options.dim, options.positions) == (32, "sinusoidal")
    assert choose("r2plus1d_18", {"temporal_stride_1": "True"}).options.time_stride == 1
    assert choose("r2plus1d_18").options.time_stride == 8
    assert choose("tiny_vtn").options.dim == 64


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            Models(frame="tiny_r2plus1d"),
            r"no encoder 'tiny_r2plus1d' that embeds frames .* the choices are .*vtn_resnet18",
        ),
        (Models(video="vtn_resnet18"), r"no encoder 'vtn_resnet18' that classifies clips"),
        (Models(frame="resnet"), "no encoder 'resnet'"),
        (Models(video_options={"dim": "3"}), "'tiny_r2plus1d' has no option 'dim'; the choices are dropout"),
        (Models(video="r2plus1d_18"), "one time feature for 8 frames"),
        (Models(video="r3d_18"), "one time feature for 8 frames"),
    ],
)
def test_a_recipe_with_an_encoder_that_no_worker_could_build_is_refused(models, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(name="x", models=models)


def test_an_encoder_that_joins_frames_is_taken_where_it_is_not_pretrained():
    Recipe(name="x", models=Models(video="r2plus1d_18"), gitdl=Gitdl(video_steps=0))
    Recipe(name="x", models=Models(video="r2plus1d_18", video_options={"temporal_stride_1": "true"}))
