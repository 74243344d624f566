"""Recipes load, their digest covers what it should, and mistakes are answered with names."""

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finepseudo.errors import RecipeError
from finepseudo.recipe import Recipe, Scale, decisive, differences, digest, recipe_from
from finepseudo.recipes import RECIPES, find

ROOT = Path(__file__).parents[2]


def job(*arguments, name="run"):
    command = [sys.executable, str(ROOT / f"jobs/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_survives_json(name):
    recipe = find(name)
    assert digest(recipe) == digest(find(name))
    assert digest(recipe_from(decisive(recipe))) == digest(recipe)


def leaves(value, prefix=""):
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", inner


def changed(value):
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 0.8 + 0.01
        case str():
            return {"fp32": "bf16", "soft": "hard", "log_odds": "score"}.get(value, value + "x")
        case tuple():
            return value[:-1]
    raise AssertionError(value)


def with_leaf(recipe, path, value):
    head, _, rest = path.partition(".")
    return replace(recipe, **{head: with_leaf(getattr(recipe, head), rest, value) if rest else value})


# These cannot be changed alone.
ALONE = {
    "scale.train_workers",
    "models.frame_weights",
    "models.frame_sha256",
    "models.video_weights",
    "models.video_sha256",
}
LEAVES = [path for path, _ in leaves(find("rehearsal")) if path not in ALONE]


@pytest.mark.parametrize("path", LEAVES)
def test_digest_covers_what_decides_the_training(path):
    recipe = find("rehearsal")
    other = with_leaf(recipe, path, changed(dict(leaves(recipe))[path]))
    outside = path.startswith(("scale.", "evaluate.")) or path == "methods"
    assert (digest(other) == digest(recipe)) is outside
    assert bool(differences(decisive(other), decisive(recipe))) is not outside


def test_broken_rules_name_their_fields():
    with pytest.raises(RecipeError, match=r"scale\.train_workers = 3 must divide optimiser\.blocks_per_step = 1"):
        Recipe(name="x", scale=Scale(train_workers=3))
    with pytest.raises(RecipeError, match=r"align\.gamma: expected at least 1e-06, got -1"):
        with_leaf(find("rehearsal"), "align.gamma", -1)
    with pytest.raises(RecipeError, match=r"frames\.crop = 64 is larger .* frames\.height x frames\.width"):
        with_leaf(find("rehearsal"), "frames.crop", 64)
    with pytest.raises(RecipeError, match=r"models\.video_weights = 's3://b/w' and models\.video_sha256"):
        with_leaf(find("rehearsal"), "models.video_weights", "s3://b/w")


def test_unknown_names_show_the_nearest():
    with pytest.raises(RecipeError, match="no recipe 'rehearsl'; did you mean rehearsal"):
        find("rehearsl")
    done = job("rehearsal", "--run", "/nowhere", "--align.stps", "3")
    assert done.returncode != 0
    assert "--align.steps" in done.stdout + done.stderr


def test_recipe_of_a_file(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from finepseudo.recipe import Recipe\ndef dives():\n    return Recipe(name='dives')\ndef no(): return 3\n"
    )
    assert find(f"{mine}:dives").name == "dives"
    with pytest.raises(RecipeError, match="has no function 'dive'; it has .*dives"):
        find(f"{mine}:dive")
    with pytest.raises(RecipeError, match="must return a finepseudo.recipe.Recipe, got int"):
        find(f"{mine}:no")
    with pytest.raises(RecipeError, match="no such file"):
        find(f"{tmp_path}/other.py:dives")


def test_dry_run_says_what_would_happen_and_command_line_wins(tmp_path):
    done = job("rehearsal", "--run", tmp_path / "run", "--dry-run", "--align.steps", 7, "--scale.train-workers", 1)
    assert done.returncode == 0, done.stderr
    assert "align f_A 7" in done.stdout
    assert "1680 generated videos of 14 classes" in done.stdout
    assert digest(with_leaf(find("rehearsal"), "align.steps", 7)) in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["run", "prepare", "evaluate", "compare"])
def test_help_lists_the_recipes_fields(name):
    done = job("--help", name=name)
    assert done.returncode == 0
    assert "--align.margin" in done.stdout
    assert "--run" in done.stdout


def test_recipes_help_and_dry_run_import_no_torch_and_no_ray(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['jobs/run.py', 'rehearsal', '--run', {str(tmp_path / 'run')!r}, '--dry-run']\n"
        "runpy.run_path('jobs/run.py', run_name='__main__')\n"
        "print('heavy:', [name for name in ('torch', 'ray', 'deepspeed', 'decord') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
