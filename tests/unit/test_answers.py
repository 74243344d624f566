"""Answers: every form of them checked and committed, and a next run that learns from them."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from finepseudo.data.answers import Answers
from finepseudo.data.plan import Plan
from finepseudo.driver.evaluate import ensure_results
from finepseudo.driver.executor import InProcess
from finepseudo.driver.rounds import run_rounds
from finepseudo.errors import ManifestError
from finepseudo.recipe import changed
from finepseudo.recipes import find
from finepseudo.report.answers import bought
from finepseudo.report.page import write_report
from finepseudo.review.answers import import_answers, read_answers, sentence
from finepseudo.review.export import export_queue, label_studio_tasks
from finepseudo.review.queue import make_queue
from finepseudo.run import Run
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store

SMOKE = find("rehearsal_smoke")
RECIPE = replace(
    SMOKE,
    methods=("frozen_probe", "finepseudo"),
    rounds=replace(SMOKE.rounds, count=1, video_steps=2, frame_rounds=0),
    gitdl=replace(SMOKE.gitdl, frame_steps=2, video_steps=2),
    align=replace(SMOKE.align, steps=2),
    supervise=replace(SMOKE.supervise, steps=2),
    label=replace(SMOKE.label, fusion="mean", threshold=0.0, min_coverage=0.0, max_class_share=1.0, min_agreement=0.0),
)
NEW = "hollow back"


class Watched(InProcess):
    """Remembers what it was asked to train."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.trained = set()

    def train(self, stage, run, data, *, stop):
        self.trained.add(stage.name)
        super().train(stage, run, data, stop=stop)


def whole(recipe, run, base=None):
    executor = Watched(recipe)
    results = ensure_results(run_rounds(recipe, run, executor, base))
    return results, executor.trained


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    run = Store(str(tmp_path_factory.mktemp("answers") / "run"))
    whole(RECIPE, run)
    return Run.at(run)


@pytest.fixture(scope="module")
def queue(first):
    return make_queue(first, 6)


def page_file(folder, queue, answers):
    """answers.json as the page writes it."""
    file = folder / "answers.json"
    file.write_text(json.dumps({"form": 1, "queue": queue.digest, "recipe": queue.recipe, "answers": answers}))
    return str(file)


def wrong_label(first, clip):
    """A class other than the annotated one."""
    truth = first.manifest().truth(first.manifest().rows_of([clip]))[0]
    return first.class_names()[(int(truth) + 1) % len(first.class_names())]


@pytest.fixture(scope="module")
def second(first, queue, tmp_path_factory):
    """A run that has learned from three answers, of which two are not what the annotations say."""
    clips = [clip["clip"] for clip in queue.clips]
    given = {name: wrong_label(first, name) for name in clips[:2]}
    labelled = next(iter(first.labelled()))  # an annotated label may be answered too
    given |= {labelled: wrong_label(first, labelled)}
    answers = [{"clip": name, "answer": "rename", "label": label} for name, label in given.items()]
    answers += [{"clip": clips[2], "answer": "reject"}, {"clip": clips[3], "answer": "skip"}]
    folder = tmp_path_factory.mktemp("second")
    done = import_answers(first, page_file(folder, queue, answers))
    run = Store(str(folder / "run"))
    results, trained = whole(changed(RECIPE, {"split.answers": done.uri}), run, first.store)
    return Run.at(run, first.store), done, given, clips, results, trained


def test_the_next_run_uses_pre_training_from_the_old_one_and_trains_the_rest(second):
    _, _, _, _, _, trained = second
    assert trained == {"align/frame", "supervise/video", "finepseudo/round-1/video"}


def test_answered_clips_have_the_answered_label_wherever_labels_are_read(second, first):
    run, _, given, clips, results, _ = second
    names, manifest = run.class_names(), run.manifest()
    labelled = {name: names[label] for name, label in run.labelled().items()}
    before = {name: names[label] for name, label in first.labelled().items()}
    assert labelled == before | given
    for training in ("align/frame", "supervise/video"):
        samples = Plan.load(run.store, f"plans/train/{training}").samples
        told = dict(zip(manifest.ids(samples["clip"].to_numpy()), samples["label"].to_pylist(), strict=True))
        assert {name: names[label] for name, label in told.items()} == labelled
    table = run.labels("finepseudo/round-1")
    unlabelled = {*table["video_id"].to_pylist()}
    assert not unlabelled & given.keys()
    assert {clips[2], clips[3]} <= unlabelled, "nobody knows their class"
    gallery = {*np.concatenate(table["near"].to_pylist()).tolist()}
    assert gallery <= {*manifest.rows_of(list(labelled)).tolist()}
    assert results.split.labelled == len(labelled)
    assert "no examples" not in run.store.read(write_report(run).removeprefix(run.store.uri() + "/")).decode()


def test_the_page_says_what_each_answer_bought(second, first):
    run, done, given, _, _, _ = second
    found = {row["clip"]: row for row in bought(run)}
    assert {name: row["answer"] for name, row in found.items()} == given
    assert {name: row["label before"] for name, row in found.items() if row["label before"] != "-"} == {
        name: label for name, label in done.answers.before.items() if name in given
    }
    names, was = first.class_names(), first.labels("finepseudo/round-1")
    old = dict(zip(was["video_id"].to_pylist(), was["label"].to_pylist(), strict=True))
    now = run.labels("finepseudo/round-1").select(["video_id", "label", "near"]).to_pylist()
    for name, row in zip(given, run.manifest().rows_of([*given]).tolist(), strict=True):
        beside = [one for one in now if one["near"][0] == row]
        changed_ones = [one for one in beside if names[one["label"]] != names[old[one["video_id"]]]]
        assert found[name]["nearest to it"] == len(beside)
        assert found[name]["of these with another label now"] == len(changed_ones)
    write_report(run)
    page = run.store.read("report.html").decode()
    assert "What each answer bought" in page
    assert all(name in page for name in given)
    assert bought(first) == []


def test_answers_are_part_of_the_split(second, first):
    run, done, _, _, results, _ = second
    mine, theirs = (artefacts.required(one.store, "split")["lineage"]["fingerprint"] for one in (run, first))
    assert results.split.fingerprint == mine != theirs
    other = Answers({**done.answers.label, "x": "y"})
    assert other != done.answers


def test_what_was_answered_before_is_carried_on(second, tmp_path):
    run, done, given, _, _, _ = second
    again = make_queue(run, 2)
    assert not given.keys() & {clip["clip"] for clip in again.clips}
    name = again.clips[0]["clip"]
    more = import_answers(run, page_file(tmp_path, again, [{"clip": name, "answer": "accept", "label": "TW-U"}]))
    assert dict(more.answers.label) == {**done.answers.label, name: "TW-U"}
    assert more.added == 1
    assert f"--base {run.base.uri()} --split.answers {more.uri}" in sentence(more, run)


def test_a_new_class_makes_k_grow_and_f_e_is_pre_trained_anew(first, queue, tmp_path):
    clips = [clip["clip"] for clip in queue.clips]
    answers = [{"clip": name, "answer": "new", "label": NEW, "new": True} for name in clips[:2]]
    done = import_answers(first, page_file(tmp_path, queue, answers))
    run = Store(str(tmp_path / "run"))
    results, trained = whole(changed(RECIPE, {"split.answers": done.uri}), run, first.store)
    assert trained == {"pretrain/video", "align/frame", "supervise/video", "finepseudo/round-1/video"}
    assert results.classes == [*first.class_names(), NEW]
    reader = Run.at(run, first.store)
    assert Counter(reader.labelled().values())[len(first.class_names())] == 2
    assert len(results.rounds["finepseudo"][0].quality.accepted_per_class) == len(results.classes)
    write_report(reader)
    assert make_queue(reader, 2).class_names[-1] == NEW


def test_what_is_committed_says_what_it_was_made_from(second, first, queue):
    _, done, given, clips, _, _ = second
    store, folder = first.store, done.uri.removeprefix(first.store.uri() + "/")
    lineage = artefacts.required(store, folder)["lineage"]
    assert lineage["queue"] == queue.digest
    assert lineage["recipe"] == json.loads(store.read("recipe.json"))["digest"]
    assert dict(Answers.load(done.uri).label) == given
    assert done.answers.rejected == (clips[2],)
    was = {clip["clip"]: clip["label"] for clip in queue.clips}
    assert done.answers.before == {name: was[name] for name in clips[:3]}


def test_a_table_and_label_studio_say_the_same_as_the_page(first, queue, tmp_path):
    one, two, three = (clip["clip"] for clip in queue.clips[:3])
    table = tmp_path / "answers.csv"
    table.write_text(f"clip,label,new,note\n{one},TW-U,,sure\n{two},{NEW},true,\n{three},,,no idea\n")
    tasks = label_studio_tasks(queue, first.data())
    results = [
        [{"from_name": "label", "to_name": "video", "type": "choices", "value": {"choices": ["TW-U"]}}],
        [{"from_name": "new", "to_name": "video", "type": "textarea", "value": {"text": [NEW]}}],
    ]
    exported = [
        {"id": 1, "data": task["data"], "annotations": [{"was_cancelled": False, "result": result}]}
        for task, result in zip(tasks, results, strict=False)
    ]
    exported.append({"id": 3, "data": tasks[2]["data"], "annotations": [{"was_cancelled": True, "result": []}]})
    studio = tmp_path / "export.json"
    studio.write_text(json.dumps(exported))
    page = page_file(tmp_path, queue, [
        {"clip": one, "answer": "rename", "label": "TW-U"},
        {"clip": two, "answer": "new", "label": NEW, "new": True},
        {"clip": three, "answer": "skip"},
    ])  # fmt: skip
    found = [import_answers(first, str(file)).answers for file in (page, table, studio)]
    assert found[0].label == {one: "TW-U", two: NEW}
    assert found[1] == found[0] == found[2]
    assert [read_answers(file.read_bytes(), "f")[0] for file in (studio, table)] == [queue.digest, ""]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("clip,label\nnobody,TW-U\n", r"a\.csv, row 2, field clip: expected a clip of the run, got 'nobody'"),
        ("clip,label\n{0},TW-X\n", r"row 2, field label: expected a class of the voc.*got 'TW-X' \(did .* new = true"),
        ("clip,label\n{0},TW-U\n{0},TP-F\n", r"row 3, field label: expected 'TW-U' for .* as in row 2, got 'TP-F'"),
        ("clip,label\n{test},TW-U\n", r"row 2, field clip: expected a training clip, got .*: it is to be tested on"),
        ("clip,label,new\n{0},TW-U,maybe\n", r"row 2, field new: expected true, false or nothing, got 'maybe'"),
        ("clip,label,new\n{0},\x07,true\n", r"row 2, field label: expected a name of at most 200 printed"),
        ("id,label\n{0},TW-U\n", r"row 1: expected a header with clip and label, got 'id, label'"),
        ("clip,label\n{0},\n", r"a\.csv: expected at least one answer, got none that is not skipped"),
        ("clip,label\n,TW-U\n", r"row 2, field clip: expected a text, got ''"),
        (
            '{{"answers": [{{"clip": "{0}", "answer": "yes"}}]}}',
            r"entry 1, field answer: expected one of accept, .*'yes'",
        ),
        ('{{"answers": [{{"clip": "{0}", "answer": "accept"}}]}}', r"entry 1, field label: expected a text, got None"),
        ('{{"answers": 3}}', r"expected a list under 'answers', as review\.html writes it, got \{"),
        ('[{{"label": "TW-U"}}]', r"entry 1, field annotations: expected Label Studio's JSON"),
        ('{{"answers"', r"a\.csv: expected JSON, got "),
        ("\udcff", r"a\.csv: expected text in UTF-8, got "),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_imported(rows, message, first, queue, tmp_path):
    manifest = first.manifest()
    (test,) = manifest.ids(manifest.rows("test")[:1])
    file = tmp_path / "a.csv"
    file.write_bytes(rows.format(queue.clips[0]["clip"], test=test).encode(errors="surrogateescape"))
    before = first.store.list("answers")
    with pytest.raises(ManifestError, match=message) as error:
        import_answers(first, str(file))
    assert "\n" not in str(error.value)
    assert first.store.list("answers") == before


def test_a_rejection_and_a_label_contradict_each_other(first, queue, tmp_path):
    name = queue.clips[0]["clip"]
    answers = [{"clip": name, "answer": "reject"}, {"clip": name, "answer": "accept", "label": "TW-U"}]
    with pytest.raises(ManifestError, match=r"entry 2, field label: expected 'a rejection' for .* as in entry 1"):
        import_answers(first, page_file(tmp_path, queue, answers))


def test_the_queue_is_committed_with_a_page_that_shows_its_clips(first, queue, tmp_path):
    there = export_queue(first, queue, str(tmp_path / "queue"))
    assert [*there] == ["review.html", "queue.json", "tasks.json", "label_config.xml", "queue.csv"]
    marker = artefacts.required(Store(str(tmp_path)), "queue")
    assert marker["lineage"]["queue"] == queue.digest
    assert marker["lineage"]["recipe"] == json.loads(first.store.read("recipe.json"))["digest"]
    body = (tmp_path / "queue/review.html").read_text()
    start = body.index('id="data">') + len('id="data">')
    data = json.loads(body[start : body.index("</script>", start)])
    assert [clip["clip"] for clip in data["clips"]] == [clip["clip"] for clip in queue.clips]
    for clip in data["clips"]:
        assert str(clip["row"]) in data["strips"]
        for near in clip["near"]:
            steps = np.diff(near["path"])
            assert len(near["path"]) == clip["frames"]
            assert near["path"][0] == 0
            assert (steps >= 0).all()
            assert str(near["row"]) in data["strips"]
    text = (tmp_path / "queue/queue.json").read_text()
    assert "truth" not in text
    assert make_queue(first, 6).to_bytes().decode() == text, "the same again"
