"""Which clips come first: those that many doubtful ones would align with; classes in turn, the same ones every time."""

import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finepseudo.review.export import _csv, label_studio_config, label_studio_tasks
from finepseudo.review.queue import Queue, at_random, influence, uncertainty
from finepseudo.storage.store import Store

ROOT = Path(__file__).parents[2]


def labels(near, S, confidence, label=None, label_E=None, knownness=None, sure=0.8):
    """Labels of N clips; p_A calls them `label`, p_E `label_E`."""
    count = len(near)
    label = label or [0] * count
    return pa.table(
        {
            "video_id": [f"v{row}" for row in range(count)],
            "label": pa.array(label, pa.int32()),
            "label_A": pa.array(label, pa.int32()),
            "label_E": pa.array(label_E or label, pa.int32()),
            "confidence": pa.array(confidence, pa.float32()),
            "confidence_A": pa.array([sure] * count, pa.float32()),
            "confidence_E": pa.array([sure] * count, pa.float32()),
            "knownness": pa.array(knownness or [1.0] * count, pa.float32()),
            "near": pa.array(near, pa.list_(pa.int32())),
            "near_S": pa.array(S, pa.list_(pa.float32())),
        }
    )


def rows(picks):
    return [pick.row for pick in picks]


def test_the_formula_of_the_first_pick_by_all_pairs():
    rng = np.random.default_rng(0)
    N, G, M = 40, 9, 3
    near = [sorted(rng.choice(G, M, replace=False).tolist()) for _ in range(N)]
    S = rng.uniform(0.1, 1, (N, M))
    confidence, known = rng.uniform(0.3, 1, N), rng.normal(size=N)
    label, label_E = rng.integers(0, 4, N), rng.integers(0, 4, N)
    table = labels(near, S.tolist(), confidence.tolist(), label.tolist(), label_E.tolist(), known.tolist())
    s_NG = np.zeros((N, G))
    for row in range(N):
        s_NG[row, near[row]] = S[row].astype(np.float32)
    unit_NG = s_NG / np.linalg.norm(s_NG, axis=1, keepdims=True)
    w_NN = unit_NG @ unit_NG.T
    more_N = (known[None] > known[:, None]).sum(1) / (N - 1)
    doubt_N = ((1 - confidence) + 0.8 * (label != label_E) + np.maximum(0, 2 * more_N - 1)) / 3
    left_N, taken_K, wanted, scores = np.ones(N), np.zeros(4), [], []
    for _ in range(8):
        score_N = doubt_N * (w_NN @ (left_N * doubt_N)) / np.sqrt(1 + taken_K[label])
        score_N[wanted] = -1
        best = int(score_N.argmax())
        wanted.append(best)
        scores.append(score_N[best])
        taken_K[label[best]] += 1
        left_N = left_N * (1 - w_NN[best] / 2)
    picks = influence(table, 8)
    assert rows(picks) == wanted
    assert [pick.score for pick in picks] == pytest.approx(scores, rel=1e-4)
    first = picks[0]
    assert first.parts["doubt"] == pytest.approx(doubt_N[wanted[0]], abs=1e-5)
    assert first.score == pytest.approx(first.parts["doubt"] * first.parts["reach"] * first.parts["balance"], rel=1e-4)


def test_the_crowd_goes_before_the_loner_and_has_its_turn_once():
    crowd, loner = [[0, 1]] * 6, [[2, 3]]
    table = labels(crowd + loner, [[0.9, 0.8]] * 7, [0.6] * 6 + [0.5])
    assert rows(influence(table, 1)) == [0]
    assert rows(uncertainty(table, 1)) == [6]


@pytest.mark.parametrize("what", ["unsure", "at odds", "novel"])
def test_each_kind_of_doubt_counts(what):
    table = labels(
        [[0, 1]] * 5, [[0.9, 0.8]] * 5, [0.9, 0.9, 0.9, 0.3 if what == "unsure" else 0.9, 0.9],
        label_E=[0, 0, 0, int(what == "at odds"), 0], knownness=[5.0, 4.0, 3.0, -1.0 if what == "novel" else 6.0, 3.0],
    )  # fmt: skip
    assert rows(influence(table, 1)) == [3]


def test_a_cluster_that_aligns_badly_with_all_is_found():
    """Six clips of a class without a label beside twenty known ones; some of these are as unsure, each on its own."""
    near = [[0, 1]] * 20 + [[4, 5]] * 6
    S = [[0.9, 0.9]] * 20 + [[0.2, 0.15]] * 6
    table = labels(near, S, [0.95] * 17 + [0.6] * 9, label=[0] * 20 + [1] * 6, knownness=[3.0] * 20 + [-2.0] * 6)
    assert rows(influence(table, 1))[0] >= 20


def test_classes_take_turns():
    table = labels([[0, 1]] * 8, [[0.9, 0.8]] * 8, [0.5] * 4 + [0.52] * 4, label=[0] * 4 + [1] * 4)
    kept = [int(row >= 4) for row in rows(influence(table, 4))]
    assert kept.count(0) == kept.count(1) == 2


def test_the_order_is_the_same_every_time_and_no_clip_comes_twice():
    rng = np.random.default_rng(1)
    near = [sorted(rng.choice(6, 3, replace=False).tolist()) for _ in range(30)]
    table = labels(near, rng.uniform(0, 1, (30, 3)).tolist(), rng.uniform(0, 1, 30).tolist())
    for by in (influence, uncertainty, lambda table, count: at_random(table, count, 3)):
        found = rows(by(table, 99))
        assert found == rows(by(table, 99))
        assert sorted(found) == list(range(30))
    assert rows(at_random(table, 9, 3)) != rows(at_random(table, 9, 4))
    assert rows(at_random(table, 5, 3)) == rows(at_random(table, 9, 3))[:5]


def test_without_any_alignability_nothing_is_divided_by_nothing():
    table = labels([[0, 1]] * 3, [[0.0, 0.0]] * 3, [0.5, 0.4, 0.3])
    assert sorted(rows(influence(table, 3))) == [0, 1, 2]
    assert all(np.isfinite(pick.score) for pick in influence(table, 3))


def queue(names=("a", "b<&\"'>")):
    clip = {
        "rank": 1, "clip": "x,1", "file": "videos/x.mp4", "part": {"start_frame": 3}, "label": names[1], "score": 1.0,
        "confidence": 0.5, "knownness": 0.1, "p_A": {"label": "a"}, "p_E": {"label": "b"},
    }  # fmt: skip
    return Queue("r", "d", {"labels": "finepseudo/round-1"}, "influence", names, (clip,))


def test_label_studio_has_every_class_to_choose_and_p_as_prediction():
    one = queue()
    config = ET.fromstring(label_studio_config(one.class_names))
    assert tuple(choice.get("value") for choice in config.iter("Choice")) == one.class_names
    (task,) = json.loads(json.dumps(label_studio_tasks(one, Store("/data"))))
    assert task["data"] == {"video": "/data/videos/x.mp4", "clip": "x,1", "queue": "d", "start_frame": 3}
    (prediction,) = task["predictions"]
    (result,) = prediction["result"]
    assert result["value"] == {"choices": [one.class_names[1]]}
    assert prediction["score"] == 0.5
    assert config.find("Choices").get("name") == result["from_name"]
    assert config.find("Video").get("name") == config.find("Choices").get("toName") == result["to_name"]


def test_the_table_has_a_place_for_the_answer():
    (row,) = csv.DictReader(io.StringIO(_csv(queue())))
    assert (row["clip"], row["label"], row["answer"]) == ("x,1", queue().class_names[1], "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("export", "--run", "r"), r"expected --to FOLDER and --count of at least 1, got --to '' --count 50"),
        (("export", "--run", "r", "--to", "q", "--count", "0"), r"--count of at least 1, got --to 'q' --count 0"),
        (("import", "--run", "r"), r"expected a file of answers"),
    ],
)
def test_the_job_says_what_it_lacks(options, message):
    command = [sys.executable, str(ROOT / "jobs/review.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr


def test_help_needs_no_torch():
    code = (
        "import sys, runpy\nsys.argv = ['review.py', '--help']\n"
        "try:\n    runpy.run_path('jobs/review.py', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, cwd=ROOT).returncode == 0
