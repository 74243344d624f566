"""Which runs a comparison makes, what they share, and what becomes of one that fails."""

import importlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
from test_driver import RECIPE, Watched
from test_recipes import ROOT, job

from finepseudo.driver.executor import InProcess
from finepseudo.driver.variants import run_variants
from finepseudo.errors import RecipeError, TrainingError
from finepseudo.recipe import METHODS, Recipe, changed, digest
from finepseudo.recipes.variants import ABLATIONS, OPEN_WORLD, variants
from finepseudo.storage.store import Store

RUNS = {one.folder: one for one in variants(RECIPE, (0, 4), ablations=True, budgets=(0.5, 0.25, 0.125, 0.5))}


def test_runs_are_every_method_each_ablation_and_every_budget_over_the_seeds():
    parts = ["", "no_L_AT/", "no_L_Score/", "no_GITDL/", "mean/", "labels-0.125/", "labels-0.5/"]
    assert list(RUNS) == [f"{part}seed-{seed}" for part in parts for seed in (0, 4)]
    assert len({digest(one.recipe) for one in RUNS.values()}) == len(RUNS), "each has a run directory of its own"
    for folder, one in RUNS.items():
        assert (one.recipe.split.seed, f"seed-{one.seed}") == (one.seed, folder.rpartition("/")[2])
        assert one.recipe.methods == (("finepseudo",) if one.ablation else tuple(METHODS))
        assert one.kin == (f"seed-{one.seed}" if one.ablation else "")
        assert one.recipe.split.label_fraction == (one.budget or RECIPE.split.label_fraction)
    assert len(variants(RECIPE, (0, 4))) == 2


def test_ablations_change_what_they_say_and_nothing_else():
    of = {name: RUNS[f"{name}/seed-4"].recipe for name in ABLATIONS}
    assert (of["no_L_AT"].align.triplet_weight, of["no_L_AT"].align.score_weight) == (0, 1)
    assert (of["no_L_Score"].align.triplet_weight, of["no_L_Score"].align.score_weight) == (1, 0)
    assert of["mean"].label.fusion == "mean"
    assert (of["no_GITDL"].gitdl.frame_steps, of["no_GITDL"].gitdl.video_steps) == (0, 0)
    back = {"align.triplet_weight": 1.0, "align.score_weight": 1.0, "gitdl.frame_steps": 4, "gitdl.video_steps": 4}
    back["label.fusion"] = "product"
    for recipe in of.values():
        assert replace(changed(recipe, back), methods=RECIPE.methods) == changed(RECIPE, {"split.seed": 4})


@pytest.mark.parametrize(
    ("seeds", "more", "message"),
    [
        ((), {}, "at least one, each once, got none"),
        ((1, 1), {}, "each once, got 1, 1"),
        ((0,), {"budgets": (0.1, 5.0)}, "above 0 and up to 1, such as 0.05, got 5"),
        ((0,), {"budgets": (0.0,)}, "got 0"),
    ],
)
def test_runs_that_cannot_be_are_refused(seeds, more, message):
    with pytest.raises(RecipeError, match=message):
        variants(RECIPE, seeds, **more)


def test_an_open_world_is_run_filtered_unfiltered_and_closed():
    names = ("TW-U", "TP-F")
    runs = {one.folder: one for one in variants(RECIPE, (0, 4), novel=names) if one.world}
    assert list(runs) == [f"{world}/seed-{seed}" for world in ("open", "open_unfiltered", "closed") for seed in (0, 4)]
    assert {one.recipe.split.novel for one in runs.values()} == {names}
    assert [runs[f"{world}/seed-4"].kin for world in OPEN_WORLD] == ["", "open/seed-4", "open/seed-4"]
    recipes = [runs[f"{world}/seed-4"].recipe for world in OPEN_WORLD]
    assert [(of.label.known, of.split.drop_novel) for of in recipes] == [(0.05, False), (0, False), (0, True)]
    assert {of.methods for of in recipes} == {("finepseudo",)}


def test_a_list_of_labelled_clips_has_no_budgets():
    listed = changed(RECIPE, {"split.labelled": "mine.txt"})
    assert len(variants(listed, (0,), ablations=True)) == 5
    with pytest.raises(RecipeError, match=r"split.labelled = 'mine.txt' says which clips keep their label"):
        variants(listed, (0,), budgets=(0.1,))


def test_dry_run_lists_the_runs_and_what_is_there(tmp_path):
    Store(str(tmp_path)).write("no_L_AT/seed-1/results.json", b"{}")
    done = job(
        "rehearsal", "--run", tmp_path, "--dry-run", "--seeds", 1, 2, "--ablations", "--budgets", 0.1, name="compare"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "12 runs:" in lines
    assert len([line for line in lines if "to be run;" in line]) == 11
    assert (
        "  no_L_AT/seed-1: has results; --align.triplet-weight 0 --split.label-fraction 0.025 --split.seed 1 "
        "--methods finepseudo"
    ) in lines
    assert any(
        line.startswith("  labels-0.1/seed-2: to be run; --split.label-fraction 0.1 --split.seed 2") for line in lines
    )
    done = job("rehearsal", "--run", tmp_path, "--dry-run", "--seeds", 1, "--novel", "TW-U", "TP-F", name="compare")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  closed/seed-1: ")]
    options = line.partition("; ")[2].split()
    assert options[:4] == ["--split.novel", "TW-U", "TP-F", "--split.drop-novel"]
    assert job("rehearsal", "--run", tmp_path, "--dry-run", *options).returncode == 0, "as the command line takes them"
    done = job("rehearsal", "--run", tmp_path, "--dry-run", "--seeds", 1, 1, name="compare")
    assert (done.returncode, "RecipeError" in done.stderr) == (1, True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Where the runs lie, and what each of them trained; finepseudo alone, for it takes less time."""
    root, trained, found = Store(str(tmp_path_factory.mktemp("compared"))), {}, {}
    wanted = ("seed-0", "no_L_AT/seed-0", "no_GITDL/seed-0", "labels-0.125/seed-0")
    runs = [replace(RUNS[name], recipe=replace(RUNS[name].recipe, methods=("finepseudo",))) for name in wanted]
    executors = []

    def executor(recipe):
        executors.append(Watched(recipe))
        return executors[-1]

    for one, results in run_variants(runs, root, root.child("shared"), executor):
        trained[one.folder], found[one.folder] = executors[-1].trained, results
    return root, runs, trained, found


def test_variants_train_what_they_change_alone(compared):
    _, _, trained, _ = compared
    rounds = {"finepseudo/round-1/video", "finepseudo/round-1/frame"}
    stage_2 = {"align/frame", "supervise/video"}
    assert trained == {
        "seed-0": {"pretrain/frame", "pretrain/video", *stage_2, *rounds},
        "no_L_AT/seed-0": {"align/frame", *rounds},  # supervision of f_E is that of its kin
        "no_GITDL/seed-0": stage_2 | rounds,
        "labels-0.125/seed-0": stage_2 | rounds,
    }


def test_variants_are_runs_of_their_own_recipe(compared):
    root, runs, _, found = compared
    for one in runs:
        assert found[one.folder].recipe.digest == digest(one.recipe)
        assert root.exists(f"{one.folder}/results.json")
    assert found["no_L_AT/seed-0"].snapshots["stage_2"].f_E == root.uri("seed-0/train/supervise/video/snapshot")
    assert [found[name].split.labelled for name in ("seed-0", "labels-0.125/seed-0")] == [10, 5]


def test_a_comparison_started_again_only_looks_up(compared):
    root, runs, _, found = compared
    executors = [Watched(one.recipe) for one in runs]
    waiting = iter(executors)
    again = {one.folder: of for one, of in run_variants(runs, root, root.child("shared"), lambda _: next(waiting))}
    assert again == found
    assert {(frozenset(one.trained), sum(one.passes.values())) for one in executors} == {(frozenset(), 0)}


def test_a_run_whose_labels_collapse_takes_the_others_not_with_it(compared, tmp_path):
    root, runs, _, found = compared
    shutil.copytree(root.root, tmp_path / "again")
    root = Store(str(tmp_path / "again"))
    root.delete("seed-0")
    fails = replace(runs[0], recipe=changed(runs[0].recipe, {"label.threshold": 1.0, "label.min_coverage": 1.0}))
    (_, error), (_, results) = run_variants([fails, runs[3]], root, root.child("shared"), InProcess)
    assert isinstance(error, TrainingError)
    assert "almost nothing is accepted" in str(error)
    assert results == found["labels-0.125/seed-0"]


@dataclass
class Plain(InProcess):
    """In place of the executor on Ray, which takes another recipe in the same way."""

    recipe: Recipe


def test_the_job_writes_tables_curve_and_pages(compared, tmp_path, monkeypatch, capsys):
    root, *_ = compared
    shutil.copytree(root.root, tmp_path / "run")
    store = Store(str(tmp_path / "run"))
    steps = {"gitdl.frame-steps": 4, "gitdl.video-steps": 4, "align.steps": 4, "supervise.steps": 4}
    steps |= {"rounds.video-steps": 4, "rounds.frame-rounds": 1, "rounds.frame-steps": 4}
    numbers = [str(item) for name, value in steps.items() for item in (f"--{name}", value)]
    arguments = ["rehearsal_smoke", "--run", store.root, "--seeds", "0", "--ablations", "--budgets", "0.125", *numbers]
    monkeypatch.setattr("finepseudo.runtime.executor.on_ray", lambda recipe: nullcontext(Plain(recipe)))
    monkeypatch.syspath_prepend(ROOT / "jobs")
    importlib.import_module("compare").job(arguments)
    assert "finepseudo f_E - supervised f_E" in capsys.readouterr().out
    body = json.loads(store.read("compare.json"))
    assert (body["seeds"], body["labelled"], list(body["budgets"])) == ([0], [10], ["0.125", "0.25"])
    assert list(body["ablations"]) == [*ABLATIONS, "f_E only", "f_A only"]
    assert body["failed"] == {}
    assert body["frames"]["aligned"].keys() == {"kendall_tau", "progression", "phase"}
    text = store.read("compare.md").decode()
    assert "| no L_Score | 1 |" in text
    assert "![top-1 by share of labels](budgets.svg)" in text
    assert store.read("budgets.svg").startswith(b"<svg ")
    for one in ("seed-0", "no_L_Score/seed-0", "labels-0.125/seed-0"):
        assert store.exists(f"{one}/report.html")
        assert store.list(f"{one}/tensorboard/labels/finepseudo"), "each was watched"
