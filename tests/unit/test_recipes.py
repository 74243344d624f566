"""Every recipe loads; recipes, help and dry runs are light; mistakes on the command line are answered with names."""

import inspect
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from finepseudo.cli import Options, parse
from finepseudo.costs.predict import hours_text, predict_published
from finepseudo.costs.units import SHIPPED, read_units
from finepseudo.errors import RecipeError
from finepseudo.recipe import changed, described, digest, recipe_from
from finepseudo.recipes import PUBLISHED, RECIPES, copy_recipe, find
from finepseudo.recipes import options as recipe_options
from finepseudo.recipes.published import LARGE, public, rows

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "deepspeed", "decord", "av", "sklearn")


def job(*arguments, name="run"):
    command = [sys.executable, str(ROOT / f"jobs/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def options(*arguments):
    return parse(Options, [str(item) for item in arguments], program="jobs/x.py", description="Test.")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads(name):
    recipe = find(name)
    assert recipe.name == name
    assert recipe == find(name)
    assert digest(recipe_from(described(recipe))) == digest(recipe)
    assert RECIPES[name].__doc__, "says what it costs"
    assert options(name, "--run", "/r").recipe == recipe


def test_digests_tell_recipes_apart():
    assert len({digest(find(name)) for name in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(("wrong", "right"), [("rehearsl", "rehearsal"), ("rehearsal-smoke", "rehearsal_smoke")])
def test_unknown_recipe_shows_the_nearest(wrong, right):
    with pytest.raises(RecipeError, match=rf"no recipe '{wrong}' \(did you mean .*{right}.*; there are rehearsal,"):
        find(wrong)
    with pytest.raises(RecipeError, match=right):
        options(wrong, "--run", "/r")


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(RecipeError, match=r"no recipe 'zzz'; there are .*; or give file.py:function"):
        find("zzz")


def test_unknown_option_shows_the_nearest_and_does_nothing(tmp_path):
    done = job("rehearsal", "--run", tmp_path / "run", "--align.stps", "3")
    assert done.returncode == 2
    assert "--align.steps" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rehearsal", "--scale.train-workers", 3), ("scale.train_workers = 3", "optimiser.blocks_per_step = 1")),
        (("rehearsal", "--align.margin", "inf"), ("align.margin: expected at least 0, got inf",)),
        (("rehearsl",), ("did you mean 'rehearsal'",)),
        (("--align.steps", 3), ("the first argument names the recipe, got '--align.steps'",)),
    ],
)
def test_broken_rules_are_one_line_and_exit_1(tmp_path, arguments, said):
    done = job(*arguments, "--run", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("RecipeError: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(text in done.stderr for text in said)
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_place():
    with pytest.raises(RecipeError, match="--run: expected a directory, got an empty name"):
        options("rehearsal", "--run", "")
    with pytest.raises(SystemExit):
        options("rehearsal")


def test_the_command_line_wins_over_the_recipe():
    recipe = options(
        "rehearsal_smoke", "--run", "/r", "--align.steps", 7, "--optimiser.weight-decay", 0, "--seed", 5,
        "--methods", "pseudo_video", "--label.mean", "score",
    ).recipe  # fmt: skip
    smoke = find("rehearsal_smoke")
    assert recipe == replace(
        smoke,
        seed=5,
        methods=("pseudo_video",),
        align=replace(smoke.align, steps=7),
        optimiser=replace(smoke.optimiser, weight_decay=0.0),
        label=replace(smoke.label, mean="score"),
    )


def test_nothing_that_changes_a_result_comes_from_the_environment(monkeypatch):
    for name in ("ALIGN_STEPS", "FINEPSEUDO_ALIGN_STEPS", "SEED", "FINEPSEUDO_SEED"):
        monkeypatch.setenv(name, "7")
    assert options("rehearsal", "--run", "/r").recipe == find("rehearsal")


PAPER = {
    **{f"diving48_{share}pct": share for share in (5, 10, 20)},
    "gym99_5pct": 5,
    "gym99_10pct": 10,
    "gym288_5pct": 5,
    "finediving_5pct": 5,
    "k400_1pct": 1,
    "k400_10pct": 10,
    "ssv2_1pct": 1,
    "ssv2_10pct": 10,
}


@pytest.mark.parametrize(("name", "percent"), PAPER.items())
def test_the_papers_recipes(name, percent):
    recipe, published = find(name), PUBLISHED[name]
    assert recipe.split.label_fraction == percent / 100
    assert recipe.data == published.data
    assert (recipe.models.frame, recipe.models.video) == ("vtn_resnet18", "r2plus1d_18")
    assert recipe.scale.train_gpus == 1


@pytest.mark.parametrize("percent", [5, 10, 20])
def test_the_papers_recipes_of_its_second_table(percent):
    """Clips, steps and rounds of the first table; encoders, pixels and rates of their own."""
    first, second = find(f"diving48_{percent}pct"), find(f"diving48_{percent}pct_vit")
    assert (second.models.frame, second.models.video) == ("vtn_clip_vit_b16", "aim_vit_b16")
    assert (second.frames.crop, second.gitdl.video_steps) == (224, 0)
    assert second.optimiser == replace(first.optimiser, frame_layer_decay=0.75)
    assert second.scale == replace(first.scale, recompute=("frame", "video"))
    assert (second.data, second.split, second.label) == (first.data, first.split, first.label)
    assert [(r.supervise.steps, r.align.steps, r.rounds.video_steps, r.gitdl.frame_steps) for r in (first, second)] == [
        (first.supervise.steps, first.align.steps, first.rounds.video_steps, first.gitdl.frame_steps)
    ] * 2


def test_a_dry_run_misses_the_weights_of_a_backbone_that_is_never_trained(tmp_path):
    done = job("diving48_5pct_vit", "--run", tmp_path / "run", "--dry-run")
    assert done.returncode == 1
    said = "missing: models.video_weights: the backbone of aim_vit_b16 is never trained; name weights for it"
    assert said in done.stdout
    assert "models.frame_weights" not in done.stdout, "f_A's is trained, from random weights if need be"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_recipe_opens_with_the_command_that_starts_it(name):
    command, cost = inspect.getdoc(RECIPES[name]).splitlines()[::2][:2]
    program, recipe, *given = command.removeprefix("python ").split()
    assert (program, recipe) == ("jobs/run.py", name)
    parsed = options(name, *given).recipe
    assert digest(parsed) == digest(find(name))
    assert parsed.data.root.startswith("s3://BUCKET/")
    found = predict_published(find(name), PUBLISHED[name], read_units(SHIPPED))
    expected = f"Predicted by arithmetic and never run: {hours_text(found.hours)} on {found.gpus:g} GPUs."
    assert f"{find(name).split.label_fraction * 100:g} % of the labels of each class. {expected}" == cost


def test_passes_fall_with_the_root_of_the_size():
    """The published set is seen 100 times if it has 1,000 clips, half as often and twice as many steps if 4,000."""
    assert (rows(1000), rows(4000)) == (100_000, 200_000)
    small = replace(PUBLISHED["diving48_5pct"], train=1000)
    one, four = (public("x", replace(small, train=train), labels=0.25) for train in (1000, 4000))
    assert one.gitdl.frame_steps == one.gitdl.video_steps == math.ceil(100_000 / 64)
    assert four.gitdl.frame_steps == 2 * one.gitdl.frame_steps - 1  # rounded up
    assert one.supervise.steps == math.ceil(100 * math.sqrt(1000 * 250) / 64)
    assert one.rounds.video_steps == math.ceil(100 * math.sqrt(1000 * 750) / 64)
    large = public("x", replace(small, train=LARGE), labels=0.25)
    assert large.optimiser.blocks_per_step == large.scale.train_workers == 8


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_is_the_same_recipe(name, tmp_path):
    there = copy_recipe(name, tmp_path / "mine.py")
    assert there == f"{tmp_path}/mine.py:{name}"
    assert find(there) == find(name)
    assert digest(find(there)) == digest(find(name))
    text = (tmp_path / "mine.py").read_text()
    assert "label_fraction=" in text
    assert "margin" not in text, "fields that have their default are left out"
    assert {line.split()[1] for line in text.splitlines() if line.startswith("from")} == {"finepseudo.recipe"}


def test_a_copy_can_be_edited_and_copied_again(tmp_path):
    there = copy_recipe("diving48_5pct", tmp_path / "mine.py")
    text = (tmp_path / "mine.py").read_text()
    assert f"python jobs/run.py {there} --run" in text
    (tmp_path / "mine.py").write_text(text.replace("label_fraction=0.05", "label_fraction=0.07"))
    assert find(there).split.label_fraction == 0.07
    assert find(copy_recipe(there, tmp_path / "again.py")) == find(there)


def test_values_of_all_kinds_are_copied(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from finepseudo.recipe import Data, Models, Recipe, Rehearsal\n"
        "def odd():\n"
        "    return Recipe(name='it\\'s \"odd\"', methods=('finepseudo',),\n"
        "        data=Data(root='\\\\é', rehearsal=Rehearsal()),\n"
        "        models=Models(frame_options={'dim': '32', 'positions': 'none'}))\n"
    )
    odd = find(f"{tmp_path}/odd.py:odd")
    assert find(copy_recipe(f"{tmp_path}/odd.py:odd", tmp_path / "copy.py")) == odd


def test_a_part_of_another_class_cannot_be_copied(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from finepseudo.recipe import Align, Recipe\n"
        "class Mine(Align):\n    pass\n"
        "def odd():\n    return Recipe(name='odd', align=Mine(steps=3))\n"
    )
    with pytest.raises(RecipeError, match="Mine is a class of another file than finepseudo/recipe.py"):
        copy_recipe(f"{tmp_path}/odd.py:odd", tmp_path / "copy.py")


def test_a_copy_never_writes_over_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("precious")
    done = job("cp", "rehearsal", tmp_path / "mine.py", name="recipes")
    assert done.returncode == 1
    assert done.stderr == f"RecipeError: {tmp_path}/mine.py: is there already, and is left alone; choose another name\n"
    assert (tmp_path / "mine.py").read_text() == "precious"
    for target, said in (("mine.txt", "ends in .py"), ("no/mine.py", "cannot be written: No such file")):
        with pytest.raises(RecipeError, match=said):
            copy_recipe("rehearsal", tmp_path / target)
    with pytest.raises(RecipeError, match="did you mean 'rehearsal'"):
        copy_recipe("rehersal", tmp_path / "other.py")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_the_list_says_what_each_costs():
    done = job(name="recipes")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(RECIPES) < set(lines)
    assert " ".join(lines["diving48_10pct"].split()).startswith(
        "diving48_10pct Diving48 V2 10 % vtn_resnet18 r2plus1d_18 8 "
    )
    assert [name for name in RECIPES if "not known" in lines[name]] == ["rehearsal_frozen", "rehearsal_smoke"]
    assert "never measured" in done.stdout


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from finepseudo.recipe import Align, Recipe\n"
        "@dataclass(frozen=True)\n"
        "class Sizes:\n"
        "    steps: int = 9\n"
        "def dives():\n"
        "    return Recipe(name='dives', align=Align(steps=Sizes().steps))\n"
        "def number():\n"
        "    return 3\n"
    )
    return str(tmp_path / "mine.py")


def test_recipe_of_a_file(mine):
    assert find(f"{mine}:dives").align.steps == 9
    assert digest(find(f"{mine}:dives")) == digest(find(f"{mine}:dives"))
    assert options(f"{mine}:dives", "--run", "/r", "--align.steps", 7).recipe.align.steps == 7


def test_wrong_recipe_files_say_what_is_wrong(mine, tmp_path):
    with pytest.raises(RecipeError, match="mine.py has no function 'dive'; it has .*dives, number"):
        find(f"{mine}:dive")
    with pytest.raises(RecipeError, match="mine.py:number must return a finepseudo.recipe.Recipe, got int"):
        find(f"{mine}:number")
    with pytest.raises(RecipeError, match=r"other.py: no such file \(from the recipe .*other.py:dives\)"):
        find(f"{tmp_path}/other.py:dives")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(RecipeError, match=r"mine.txt: not a Python file .* must end in .py"):
        find(f"{tmp_path}/mine.txt:dives")


def test_dry_run_says_what_would_happen(tmp_path):
    done = job("rehearsal", "--run", tmp_path / "run", "--dry-run", "--align.steps", 7, "--scale.score-workers", 3)
    assert done.returncode == 0, done.stderr
    assert "align f_A 7" in done.stdout
    assert "3 scoring" in done.stdout
    assert "1680 generated videos of 14 classes" in done.stdout
    recipe = find("rehearsal")
    assert digest(replace(recipe, align=replace(recipe.align, steps=7))) in done.stdout
    assert "empty" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["run", "prepare", "evaluate", "compare"])
def test_help_lists_the_recipes_fields(name):
    done = job("--help", name=name)
    assert done.returncode == 0
    assert "--align.margin" in done.stdout
    assert "--run" in done.stdout
    assert all(recipe in done.stdout for recipe in RECIPES)


@pytest.mark.parametrize(
    "body",
    [
        "import finepseudo.recipes, finepseudo.cli, finepseudo.storage",
        "import finepseudo.storage.artefacts",
        "sys.argv = ['run.py', '--help']; runpy.run_path('jobs/run.py', run_name='__main__')",
        "sys.argv = ['run.py', 'rehearsal', '--run', '/nowhere/x', '--dry-run'];"
        "runpy.run_path('jobs/run.py', run_name='__main__')",
        "sys.argv = ['run.py', 'k400_1pct', '--run', '/nowhere/x', '--dry-run'];"
        "runpy.run_path('jobs/run.py', run_name='__main__')",
        "sys.argv = ['compare.py', 'rehearsal', '--run', '/nowhere/x', '--dry-run'];"
        "runpy.run_path('jobs/compare.py', run_name='__main__')",
        "sys.argv = ['labels.py', '--help']; runpy.run_path('jobs/labels.py', run_name='__main__')",
        "sys.argv = ['why.py', '--help']; runpy.run_path('jobs/why.py', run_name='__main__')",
        "sys.argv = ['recipes.py']; runpy.run_path('jobs/recipes.py', run_name='__main__')",
        "sys.argv = ['run.py', 'rehearsal', '--run', '/nowhere/x', '--oops'];"
        "runpy.run_path('jobs/run.py', run_name='__main__')",
    ],
)
def test_recipes_help_and_dry_run_import_nothing_heavy(body):
    code = (
        "import contextlib, runpy, sys\n"
        f"with contextlib.suppress(SystemExit): {body}\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_recipe_and_errors_need_one_small_library_alone():
    code = (
        "import sys\nbefore = set(sys.modules)\nimport finepseudo.recipe\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'typing_extensions'}))"  # annotated_types may take it
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "['annotated_types', 'finepseudo']", done.stderr


@dataclass(frozen=True, kw_only=True)
class More(Options):
    """A job's own option."""

    extra: int = 3


def test_a_job_adds_its_own_options():
    found = parse(More, ["rehearsal", "--run", "/r", "--extra", "4"], program="jobs/x.py", description="Test.")
    assert (found.extra, found.run) == (4, "/r")


@pytest.mark.parametrize("name", ["rehearsal", "rehearsal_smoke", "diving48_10pct"])
def test_the_options_of_a_recipe_make_it_of_the_one_of_its_name(name):
    made = changed(find(name), {"align.margin": 0.25, "split.label_fraction": 0.3, "optimiser.blocks_per_step": 8})
    if made.data.rehearsal:
        other = replace(made.data.rehearsal, train_per_class=25, words=("TW-U", "TP-F"))
        made = replace(made, data=replace(made.data, rehearsal=other))
    known, *others = recipe_options.options(
        replace(made, scale=replace(made.scale, train_workers=1)), leave=("align.margin",)
    )
    found = parse(Options, [known, "--run", "/r", *others], program="jobs/run.py", description="Test.").recipe
    assert replace(found, align=made.align) == made
    assert found.align.margin == find(name).align.margin, "it was to be left out"
    assert recipe_options.options(find(name)) == [name]


def test_of_a_recipe_of_a_users_own_file_the_name_alone_is_known():
    assert recipe_options.options(replace(find("rehearsal"), name="mine")) == ["mine"]
