"""Why a clip has its label: the page of every kind of clip, on a whole short run and on labels made for the purpose."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_run import LABELLED, NAMES, labelled_run

from finepseudo import rehearsal
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import ManifestError
from finepseudo.labels import why as module
from finepseudo.labels.outcome import UNDECODED, Outcome
from finepseudo.labels.why import why
from finepseudo.recipes import find
from finepseudo.run import Run
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]
SMOKE = find("rehearsal_smoke")
RECIPE = replace(
    SMOKE,
    methods=("finepseudo",),
    rounds=replace(SMOKE.rounds, count=2, video_steps=2, frame_rounds=0),
    gitdl=replace(SMOKE.gitdl, frame_steps=2, video_steps=0),
    align=replace(SMOKE.align, steps=2),
    supervise=replace(SMOKE.supervise, steps=2),
    label=replace(SMOKE.label, known=0.1, threshold=0.2, min_coverage=0.0, max_class_share=1.0, min_agreement=0.0),
)
DAMAGED = rehearsal.video_ids(SMOKE.data.rehearsal, "train")[3][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run of two rounds, whose data and pre-training lie in a base; one of its files is damaged."""
    folder = tmp_path_factory.mktemp("why")
    base, store = Store(str(folder / "base")), Store(str(folder / "run"))
    base.write(f"data/videos/{DAMAGED}.mp4", b"no video")
    ensure_results(run_rounds(RECIPE, store, InProcess(RECIPE), base))
    return Run.at(store, base)


def sections(page):
    """Lines by the head of their section."""
    return {lines[0]: lines[1:] for lines in (part.splitlines() for part in page.split("\n\n"))}


def section(page, head):
    (found,) = (lines for name, lines in sections(page).items() if name.startswith(head))
    return found


def call(name, monkeypatch, *words):
    """A job in this process."""
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / f"jobs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.job([str(word) for word in words])


def said(p):
    return f"{p:.3f}".removeprefix("0")


def test_the_page_of_an_unlabelled_clip(run):
    names = run.manifest().class_names
    rounds = [run.labels(f"finepseudo/round-{number}").to_pylist() for number in (1, 2)]
    kinds = set()
    for first, second in zip(*rounds, strict=True):
        page = why(run, first["video_id"])
        assert f"clip   {first['video_id']}\nfile   videos/{first['video_id']}.mp4, whole: " in page
        assert "is     unlabelled (D_u); split 'train' of the annotations" in page
        truth = names[run.manifest().truth(np.array([first["clip"]]))[0]]
        assert f"truth  {truth} (never seen by training)" in page
        head, *lines = section(page, "Its labels")
        for number, (line, made) in enumerate(zip(lines, (first, second), strict=False), 1):
            cells = dict(zip(head.split(), re.split(r" {2,}", line.strip()), strict=False))
            assert cells["round"] == f"finepseudo/round-{number}"
            assert line.split()[1:3] == [names[made["label"]], said(made["confidence"])]
            kinds.add(line.split("  ")[-1].split(",")[0].split()[0])
            if not made["accepted"]:
                bound = run.known_from(cells["round"])
                assert ("< label.threshold 0.2" in line) == (made["confidence"] < 0.2)
                assert ("as of an unknown class" in line) == (made["knownness"] < np.float32(bound))
        flip = f"  it changed in finepseudo/round-2: {names[first['label']]} -> {names[second['label']]}"
        assert (flip in page) == (first["label"] != second["label"])
        votes = section(page, "Who voted")
        assert [line.split()[-1] for line in votes[1:]] == run.manifest().ids(np.array(first["near"] + second["near"]))
        for number, made in enumerate((first, second), 1):
            (used,) = (line for line in page.splitlines() if line.startswith(f"  finepseudo/round-{number}/video"))
            expected = f"pseudo-labelled {names[made['label']]}, weight {made['confidence']:.3f}, read "
            assert expected in used if made["accepted"] else used.endswith("  not in it")
        assert re.search(r"\n  pretrain/frame +without a label, read [\d.]+ times\n", page), "it lies in the base"
        assert re.search(r"\n  supervise/video +not in it\n", page)
    assert kinds == {"yes", "no:"}, "the short run has both"


def test_the_page_of_a_labelled_clip_says_whose_labels_it_stands_behind(run):
    (video_id, *_) = run.labelled()
    (row,) = run.manifest().rows_of([video_id]).tolist()
    page = why(run, f"videos/{video_id}.mp4")
    label = int(run.manifest().truth(np.array([row]))[0])
    assert (
        f"is     labelled (D_l); split 'train' of the annotations\nlabel  {run.manifest().class_names[label]}\n" in page
    )
    assert "never seen" not in page
    assert re.search(rf"\n  supervise/video +labelled {run.manifest().class_names[label]}, read [\d.]+ times\n", page)
    for line, number in zip(section(page, "Whose labels")[1:], (1, 2), strict=True):
        near = [
            of for of in run.labels(f"finepseudo/round-{number}").to_pylist() if of["accepted"] and row in of["near"]
        ]
        same = sorted((of for of in near if of["label"] == label), key=lambda of: -of["confidence"])
        name, *cells = line.split()
        assert name == f"finepseudo/round-{number}"
        assert cells[:2] == [str(len(near)), str(len(same))]
        named = ", ".join(f"{of['video_id']} {said(of['confidence'])}" for of in same[:5])
        assert " ".join(cells[2:]) == named


def test_the_page_of_a_test_clip_has_the_predictions(run):
    made = run.predictions().to_pylist()
    names = run.manifest().class_names
    for row in made[:4]:
        page = why(run, row["video_id"])
        assert "is     test: it is measured on, and never trained on" in page
        assert f"truth  {names[row['truth']]}\n" in page
        lines = section(page, "Predictions (the run stands by finepseudo/fused)")
        told = {line.split()[0]: line.split()[1:] for line in lines[1:]}
        assert told["finepseudo/fused"] == [
            names[row["finepseudo/fused"]], "right" if row["finepseudo/fused"] == row["truth"] else "wrong",
        ]  # fmt: skip
        assert told.keys() == {name for name in row if "/" in name}


def test_the_page_of_a_rejected_clip_says_the_reason(run):
    page = why(run, run.data().uri(f"videos/{DAMAGED}.mp4"))
    assert re.search(r"\nis     rejected: \S.+; split 'train' of the annotations\n", page)
    assert "Its labels" not in page


def test_the_whole_run_taken_home(run, tmp_path, monkeypatch, capsys):
    """By the jobs themselves."""
    where = ("--run", run.store.uri(), "--base", run.base.uri())
    call("labels", monkeypatch, "export", *where, "--to", tmp_path / "a.jsonl")
    assert capsys.readouterr().out == f"{tmp_path}/a.jsonl\n"
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    made = {row["video_id"]: row for row in run.labels("finepseudo/round-2").to_pylist()}
    outcome = Outcome(run)
    assert (outcome.method, outcome.rounds) == ("finepseudo", ["finepseudo/round-1", "finepseudo/round-2"])
    assert {row["video_id"] for row in found} == made.keys() | {DAMAGED}
    bound = run.known_from("finepseudo/round-2")
    for row in found:
        if row["video_id"] == DAMAGED:
            assert row["label"] is None
            assert row["reason"]
            continue
        assert row["known"] == (made[row["video_id"]]["knownness"] >= np.float32(bound))
        assert row["known"] or not row["accepted"]
        assert run.data().exists(row["file"])
    call("why", monkeypatch, found[0]["video_id"], *where)
    assert capsys.readouterr().out.startswith(f"clip   {found[0]['video_id']}\n")


@pytest.mark.parametrize("searched", [100, 3])
def test_unknown_names_are_answered_with_near_ones(tmp_path, monkeypatch, searched):
    """Also where there are too many to compare with all."""
    monkeypatch.setattr(module, "SEARCHED", searched)
    run = labelled_run(tmp_path, path=[f"videos/{'one' if row < 2 else row}.mp4" for row in range(14)])
    with pytest.raises(ManifestError, match=r"no clip 'v0077' in the manifest of .* \(did you mean 'v007'"):
        why(run, "v0077")
    with pytest.raises(ManifestError, match=r"no clip 'video/9.mp4' .*did you mean 'videos/"):
        why(run, "video/9.mp4")
    with pytest.raises(
        ManifestError, match=r"videos/one.mp4: 2 clips are parts of this file; name one of them: v000, v001$"
    ):
        why(run, "videos/one.mp4")
    assert why(run, f"{tmp_path}/data/videos/7.mp4").startswith("clip   v007\n")


def test_what_a_run_does_not_know_is_said(tmp_path):
    columns = {"start": [9] * 14, "num_frames": [30] * 14, "split": ["train"] * 13 + ["test"]}
    run = labelled_run(tmp_path / "run", undecoded=[7, 8], **columns)
    page = why(run, "v007")
    assert "file   v/7.mp4, frames 9 to 39 of 99 (0.36 to 1.56 s)" in page
    assert section(page, "Its labels")[2].endswith(UNDECODED)
    assert section(why(run, "v008"), "Its labels")[2].endswith(f"{UNDECODED}: cut: 8")
    assert "Predictions: none, the run is not finished" in why(run, "v013")
    old = labelled_run(tmp_path / "old", without=["near", "near_S"])
    assert "not known: an older version made these labels" in why(old, "v007")
    assert "Whose labels" not in why(old, "v000")
    early = labelled_run(tmp_path / "early", rounds=0)
    assert section(why(early, f"v{LABELLED:03d}"), "Its labels") == ["no round is labelled yet"]
    assert NAMES[1] in why(early, "v001")
