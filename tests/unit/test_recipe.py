"""The digest covers what decides the training, and what contradicts itself is answered with the fields' names."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from typing import Annotated, get_args, get_origin

import pytest
from annotated_types import Le

from finepseudo.errors import RecipeError
from finepseudo.recipe import (
    METHODS,
    Augment,
    Data,
    Method,
    Optimiser,
    Recipe,
    Rehearsal,
    Scale,
    check_fields,
    described,
    digest,
    recipe_from,
)
from finepseudo.recipes import find
from finepseudo.storage.lineage import differences, fingerprint


def leaves(value, prefix=""):
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", inner


def with_leaf(recipe, path, value):
    head, _, rest = path.partition(".")
    return replace(recipe, **{head: with_leaf(getattr(recipe, head), rest, value) if rest else value})


OTHER = {
    "models.frame": "vtn_resnet18",
    "models.video": "r2plus1d_18",
    "models.frame_options": {"dim": "9"},
    "models.video_options": {"dropout": "0.1"},
    "models.frozen": "vtn_resnet18",
    "models.frozen_options": {"dim": "9"},
    "scale.recompute": ("frame",),
}
LAYERS = {"models.frame": "vtn_vit_s16", "models.video": "aim_vit_b16"}


def changed(path, value):
    if path in OTHER:
        return OTHER[path]
    if path == "data.rehearsal.size":
        return value + 2
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 3.0 if path.endswith("rates") else value * 0.8 + 0.01
        case str():
            others = {"fp32": "bf16", "soft": "hard", "log_odds": "score", "thorough": "quick", "gitdl": "tclr"}
            others |= {"product": "mean"}
            return others.get(value, value + "x")
        case tuple():
            return value[:-1] or ("x",)
    raise AssertionError(value)


# What else must be set where the default alone cannot be changed.
FRAME, VIDEO, FROZEN = (
    {f"models.{part}_weights": "/w", f"models.{part}_sha256": "ab"} for part in ("frame", "video", "frozen")
)
STORED = {"models.frozen": "tiny_vtn", "models.frame": "feature_vtn", "models.video": "feature_transformer"}
BESIDE = {
    "scale.train_workers": {"optimiser.blocks_per_step": 2},
    **dict.fromkeys(FRAME, FRAME),
    **dict.fromkeys(VIDEO, VIDEO),
    **{key: {**FROZEN, **STORED} for key in FROZEN},
    **dict.fromkeys(("models.frozen", "models.frozen_options"), STORED),
    "models.video": {"gitdl.video_steps": 0},
    **dict.fromkeys(("optimiser.frame_layer_decay", "optimiser.video_layer_decay", "scale.recompute"), LAYERS),
    "data.rehearsal.strangers": {"data.rehearsal.persons": 4},
    "label.lag": {"rounds.count": 2},
}
# Where something lies decides nothing.
PLACES = {"data.root", "models.frame_weights", "models.video_weights", "models.frozen_weights"}
# The loss is one of a table with one entry so far: there is no other.
PATHS = [path for path, _ in leaves(find("rehearsal")) if path != "align.loss"]


def with_all(recipe, values):
    """Several leaves at once; rules hold for the result only, so the parts are replaced without checks."""
    parts = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        parts[head] = with_leaf(parts.get(head, getattr(recipe, head)), rest, value) if rest else value
    return replace(recipe, **parts)


@pytest.mark.parametrize("path", PATHS)
def test_digest_covers_every_field_that_decides_the_training(path):
    base = with_all(find("rehearsal"), BESIDE.get(path, {}))
    other = with_all(base, {path: changed(path, dict(leaves(base))[path])})
    outside = path.startswith(("scale.", "evaluate.")) or path == "methods"
    assert (digest(other) == digest(base)) is (outside or path in PLACES)
    found = differences(described(other), described(base))
    fields = {line.split(":")[0].partition("_options.")[0] for line in found}
    assert fields == (set() if outside else {path.removesuffix("_options")})


def test_digest_is_the_same_in_another_process():
    code = "from finepseudo.recipes import find; from finepseudo.recipe import digest; print(digest(find('rehearsal')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == digest(find("rehearsal"))


def test_a_whole_number_in_a_float_field_is_the_same_number():
    one, two = (Recipe(name="x", optimiser=Optimiser(weight_decay=value)) for value in (0, 0.0))
    assert one == two
    assert digest(one) == digest(two)


def test_what_the_digest_covers_survives_json():
    for recipe in (find("rehearsal"), Recipe(name="plain", data=Data(root="s3://b/d"))):
        again = recipe_from(json.loads(json.dumps(described(recipe))))
        assert again == replace(recipe, scale=again.scale, methods=again.methods, evaluate=again.evaluate)


def test_differences_name_the_field_and_both_values():
    mine, theirs = {"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 2, "c": [1]}, "e": 1}
    assert differences(mine, theirs) == ["a.b: 2 -> 1", "d: '(absent)' -> None", "e: 1 -> '(absent)'"]
    assert differences(mine, mine) == []
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def test_a_training_may_have_fewer_workers_where_each_number_of_them_divides_the_blocks_of_a_step():
    def scale(least, most, blocks):
        values = {"scale.train_workers_min": least, "scale.train_workers": most, "optimiser.blocks_per_step": blocks}
        return with_all(find("rehearsal"), values).scale

    assert scale(0, 4, 8).least_train_workers == 4
    assert scale(1, 2, 8).least_train_workers == 1
    assert scale(3, 4, 12).least_train_workers == 3
    assert scale(4, 4, 8).least_train_workers == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale.train_workers": 3}, r"scale\.train_workers = 3 must divide optimiser\.blocks_per_step = 1"),
        ({"scale.train_workers_min": 2}, r"scale\.train_workers_min = 2 is more than scale\.train_workers = 1"),
        (
            {"scale.train_workers_min": 2, "scale.train_workers": 4, "optimiser.blocks_per_step": 8},
            r"scale\.train_workers_min = 2 lets a training have 3 .* optimiser\.blocks_per_step = 8 .* set it to 4",
        ),
        ({"frames.crop": 64}, r"frames\.crop = 64 is larger .* frames\.height x frames\.width = 48 x 48"),
        ({"frames.width": 32}, r"frames\.crop = 40 is larger .* frames\.height x frames\.width = 48 x 32"),
        ({"models.video_weights": "s3://b/w"}, r"models\.video_weights = 's3://b/w' and models\.video_sha256 = ''"),
        ({"models.frame_sha256": "ab"}, r"models\.frame_weights = '' and models\.frame_sha256 = 'ab'"),
        ({"models.frozen_sha256": "ab"}, r"models\.frozen_weights = '' and models\.frozen_sha256 = 'ab'"),
        ({"models.frozen": "tiny_vtn"}, r"models\.frame = tiny_vtn takes pixels, .* features; .* feature_vtn"),
        ({"models.video": "feature_transformer"}, r"models\.video = feature_transformer .* sees pixels; .*r2plus1d_18"),
        ({"models.frozen": "feature_vtn"}, r"models\.frozen: feature_vtn has no backbone per frame"),
        ({"models.frozen": "r3d_18"}, r"no encoder 'r3d_18' that embeds frames"),
        ({"models.frozen_options": {"dim": "8"}}, r"models\.frozen_options are of no encoder: name it in models"),
        ({"align.triplet_weight": 0, "align.score_weight": 0}, r"align\.triplet_weight and align\.score_weight"),
        ({"gitdl.video_loss": "clip"}, r"gitdl\.video_loss: expected gitdl, tclr, got 'clip'"),
        ({"gitdl.video_loss": "tclr", "gitdl.skip_global": 2}, r"skip_global = 2 and gitdl\.skip_local = 2: .* tclr"),
        ({"gitdl.video_loss": "tclr", "gitdl.skip_global": 5}, r"skip_global = 5 and gitdl\.skip_local = 2: .* whole"),
        ({"gitdl.video_loss": "tclr", "gitdl.frames": 15}, r"gitdl\.frames = 15: .* multiple of .* = 2"),
        ({"methods": ()}, r"methods: expected at least one of frozen_probe, .*finepseudo"),
        ({"methods": ("finepseudo", "mixmatch")}, r"methods: expected frozen_probe, .* got 'mixmatch'"),
        ({"optimiser.precision": "fp16"}, r"optimiser\.precision: expected fp32, bf16, got 'fp16'"),
        ({"rounds.targets": "Soft"}, r"rounds\.targets: expected soft, hard, got 'Soft'"),
        ({"label.mean": "mean"}, r"label\.mean: expected log_odds, score, got 'mean'"),
        ({"scale.zero_stage": 4}, r"scale\.zero_stage: expected 0, 1, 2, 3, got 4"),
        ({"data.videos": "videos/{id}.mp4"}, r"data\.videos: expected .* in it and no other braces, got 'videos/"),
        ({"data.rehearsal.size": 47}, r"data\.rehearsal\.size: expected an even number of pixels, got 47"),
        ({"data.rehearsal.look": 4}, r"data\.rehearsal\.look: expected from 0 to 3, got 4"),
        ({"data.rehearsal.words": ("TW-U",)}, r"data\.rehearsal\.words: expected at least two classes"),
        ({"data.rehearsal.words": ("TW-U", "TW-U", "T-U")}, r"data\.rehearsal\.words: .* each once"),
        ({"data.rehearsal.strangers": 2}, r"data\.rehearsal\.strangers: there are none .* set persons too"),
        ({"data.rehearsal.words": ("TW-U", "TX-U")}, r"data\.rehearsal\.words: expected letters .* got 'TX-U'"),
    ],
)
def test_broken_rules_name_their_fields(values, message):
    with pytest.raises(RecipeError, match=message):
        with_all(find("rehearsal"), values)


NUMBERS = [path for path, value in leaves(find("rehearsal")) if isinstance(value, int | float)]


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_no_number_is_negative_or_not_finite(path, value):
    with pytest.raises(RecipeError, match=path.replace(".", r"\.")):
        with_leaf(find("rehearsal"), path, value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"align.steps": "3"}, "align.steps: expected int, got '3'"),
        ({"align.steps": 3.0}, "align.steps: expected int, got 3.0"),
        ({"align.steps": True}, "align.steps: expected int, got True"),
        ({"align.lr": "1"}, "align.lr: expected float, got '1'"),
        ({"align.lr": False}, "align.lr: expected float, got False"),
        ({"align.lr": None}, "align.lr: expected float, got None"),
        ({"scale.zero_stage": True}, "scale.zero_stage: expected 0, 1, 2, 3, got True"),
        ({"name": 3}, "name: expected str, got 3"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"split.label_fraction": 2}, "split.label_fraction: expected from 0 to 1, got 2"),
        ({"optimiser.clip": 0}, "optimiser.clip: expected at least 1e-06, got 0"),
        ({"methods": "finepseudo"}, "methods: expected tuple, got 'finepseudo'"),
        ({"methods": (3,)}, "methods: expected frozen_probe, .*, finepseudo, got 3"),
        ({"align": {"steps": 3}}, "align: expected Align, got {'steps': 3}"),
        ({"data.rehearsal": "yes"}, "data.rehearsal: expected Rehearsal, got 'yes'"),
        ({"data.rehearsal.fps": 25.0}, "data.rehearsal.fps: expected int, got 25.0"),
        ({"data.rehearsal.words": ("TW-U", 3)}, "data.rehearsal.words: expected str, got 3"),
    ],
)
def test_values_have_the_type_and_the_bound_of_their_field(values, message):
    with pytest.raises(RecipeError, match=f"^{message}$"):
        with_all(find("rehearsal"), values)


@pytest.mark.parametrize("kind", [int, float, Annotated[int, Le(3)], int | None, tuple[int, ...]], ids=str)
def test_a_number_without_a_bound_is_caught(kind):
    part = dataclasses.make_dataclass("Part", [("more", kind)])
    with pytest.raises(TypeError, match="align.more: a number needs its smallest value in its type"):
        check_fields(part((1,) if get_origin(kind) is tuple else 1), "align.")


def test_the_table_of_methods_has_every_method():
    assert set(METHODS) == set(get_args(Method))
    assert [method for method, traits in METHODS.items() if not traits.baseline] == ["finepseudo"]
    assert [method for method, traits in METHODS.items() if not traits.unlabelled] == [
        "frozen_probe", "supervised", "supervised_2x"
    ]  # fmt: skip
    assert [method for method, traits in METHODS.items() if traits.own_rounds] == ["fixmatch", "timebalance"]
    assert [method for method, traits in METHODS.items() if not traits.trains] == ["frozen_probe"]


def test_recipes_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("rehearsal").align.steps = 3
    with pytest.raises(TypeError):
        Augment(0.5)
    with pytest.raises(TypeError, match="stps"):
        Scale(stps=3)
    assert Data().rehearsal is None
    assert Rehearsal().words
