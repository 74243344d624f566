"""The last lines of a run and its page say what was measured, whatever it is, and need nothing but themselves."""

import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
from dataclasses import replace

import clips
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from finepseudo import rehearsal
from finepseudo.align.fusion import Fusion
from finepseudo.align.gallery import Embeddings
from finepseudo.data.child import Child, answer
from finepseudo.models import weights
from finepseudo.recipe import METHODS, Rehearsal, changed
from finepseudo.recipes import find
from finepseudo.report import examples
from finepseudo.report.examples import _chosen, choose_examples
from finepseudo.report.look import SIDE
from finepseudo.report.page import write_report
from finepseudo.report.summary import summary
from finepseudo.report.words import figure
from finepseudo.results import (
    Accuracy,
    Confusion,
    Curve,
    FrameQuality,
    Interval,
    ManifestCounts,
    Measured,
    OpenWorld,
    PairTest,
    RecipeName,
    Results,
    RoundQuality,
    RoundResult,
    Share,
    Snapshots,
    SplitCounts,
)
from finepseudo.run import Run, claim
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.checkpoint import REJECTED, Taken
from finepseudo.train.initial import random_encoder

HOSTILE = "<script>alert('x')</script>"
FIGURE = r"[+-]?(?:1\.|\.)\d{3} ±(?:\.\d{3}|\?)"


def accuracy(top1):
    return Accuracy(
        top1=Share(top1, 0.012), top5=Share(0.9, 0.012), mean_class=Share(top1, 0.012), calibration_error=0.05,
        per_class=[0.5, None, 1.0, 0.0, 0.25, 0.75], confused=[Confusion(3, 2, 7, 0.875)], videos=40,
    )  # fmt: skip


FUSION = Fusion(1.0, 1.0, 2.0, 1.0, accuracy_A=0.9, accuracy_E=0.5, accuracy=0.92)


def labels(name, accepted=12):
    shares = {key: Share(value, 0.01) for key, value in (("p_E", 0.7), ("p_A", 0.8), ("p", 0.85))}
    quality = RoundQuality(
        unlabelled=16,
        accepted=accepted,
        coverage=accepted / 16,
        agreement=0.75,
        precision_all=shares,
        precision_accepted=shares if accepted else dict.fromkeys(shares),
        calibration_error=0.05 if accepted else math.nan,
        accepted_per_class=[accepted, 0, 0, 0, 0, 0],
        known_per_class=[accepted, 0, 0, 0, 0, 0],
        known=16,
        open_world=None,
        right_per_class=[accepted // 2, 0, 0, 0, 0, 0],
        curves=dict.fromkeys(shares, Curve([0.5, 1.0], [1.0, 0.8])),
    )
    return RoundResult(name, quality, FUSION)


def results(methods=("supervised", "finepseudo"), dtw=0.8, pairs=True, rounds=0):
    values = {"pooled_cosine": 0.6, "timestamp_cosine": 0.7, "dtw": dtw, "score": 0.9}
    training = {"wait": 2.0, "transfer": 1.0, "compute": 5.0, "commit": 1.0, "decode": 3.0, "launch": 1.0}
    passed = {"start": 1.0, "decode": 0.1, "predict": 0.2, "total": 2.0, "rows": 20.0}
    compared = {"supervised", "finepseudo"} <= set(methods)
    whole = accuracy(0.7)
    return Results(
        recipe=RecipeName(HOSTILE, "abc", 0),
        split=SplitCounts(0, "def", 4, 16),
        manifest=ManifestCounts("123", {"train": 20, "test": 4}, 1, {HOSTILE: 1}),
        classes=[HOSTILE, "pike", "twist", "tuck", "fold", "straddle"],
        measured={name: Measured(whole, whole, whole, FUSION) for name in ("stage_2", *methods)},
        rounds={
            name: [labels(f"{name}/round-{n + 1}") for n in range(0 if name.startswith("supervised") else rounds)]
            for name in methods
        },
        pairs=PairTest(20, 100, 10, {name: Share(value, 0.01) for name, value in values.items()} if pairs else {}),
        frames={
            "pretrained": FrameQuality(
                20, Interval(0.5, 0.4, 0.6), Interval(-0.2, -0.3, 0.1), Interval(0.8, 0.7, 0.9), 0.3
            ),
            "aligned": FrameQuality(20, Interval(0.75, 0.625, 0.875), None, None, None),
        },
        gains={f"{part}, over supervised": Share(0.05, 0.02) for part in ("f_E", "fused")} if compared else {},
        snapshots={"stage_2": Snapshots("train/align/frame/snapshot", "train/x/snapshot", "a1", HOSTILE)},
        prediction="finepseudo/fused",
        predictions="results/1/predictions.parquet",
        timing={"train/align/frame": training, "embeddings/aligned": passed},
    )


def a_run(folder, recipe="rehearsal_smoke"):
    run = Store(str(folder))
    claim(run, find(recipe))
    return run


def page_of(run, body, base=None):
    predictions = {
        "predictions.parquet": artefacts.table_bytes(
            pa.table({"truth": [0, 0, 0, 2], "finepseudo/fused": [0, 0, 1, 2]})
        )
    }
    artefacts.commit(run, "results/1", predictions, {})
    run.write("results.json", body.to_json())
    assert write_report(Run.at(run, base)) == run.uri("report.html")
    return run.read("report.html").decode()


def check_self_contained(page):
    """Nothing is fetched, and the page's own script alone runs; base64 may look like an address, so it is taken out."""
    page = re.sub(r'src="data:image/jpeg;base64,[A-Za-z0-9+/=]*"', "", page)
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page)
    assert "default-src 'none'; img-src data:; " in html.unescape(page)
    assert page.count("<script") == 1
    page = page.replace(script, "").replace("http-equiv", "")
    assert not re.search(r"https?:|url\((?!#)|@import|<link|<iframe|<object|javascript:| style=| on\w+=", page)
    assert re.findall(r'\b(?:src|href|action)="(?!#)[^"]*"', page) == []


@pytest.mark.parametrize("methods", [m for n in range(6) for m in itertools.combinations(METHODS, n)], ids=str)
def test_summary_gives_every_figure_with_its_standard_error(methods):
    text = summary(results(methods, rounds=1))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 32
    for name in methods:
        (row,) = [line for line in lines if line.startswith(f"  {name:<15}")]
        assert len(re.findall(FIGURE, row)) >= 4, row
    for name in (method for method in methods if METHODS[method].labels):
        (at,) = [n for n, line in enumerate(lines) if line.startswith(f"  {name}, round 1")]
        assert len(re.findall(FIGURE, lines[at])) == len(re.findall(FIGURE, lines[at + 1])) == 4
    assert re.search(r"soft-DTW, pre-trained f_A +\.800 ±\.010", text)


def test_summary_is_honest_about_the_order():
    assert "holds" in summary(results())
    assert "does NOT hold: soft-DTW <= cosine per timestamp\n" in summary(results(dtw=0.65))
    assert "does NOT hold: alignability score <= soft-DTW\n" in summary(results(dtw=0.9))
    assert "not possible" in summary(results(pairs=False))
    assert "not possible" in summary(results(dtw=math.nan))


@pytest.mark.parametrize(
    ("value", "se", "words"),
    [(0.05, 0.02, "better than"), (-0.05, 0.02, "WORSE than"), (0.03, 0.02, "not told apart"), (0.0, 0.0, "not told")],
)
def test_a_difference_is_called_one_beyond_two_standard_errors(value, se, words):
    body = results()
    body.gains["f_E, over supervised"] = Share(value, se)
    (line,) = [line for line in summary(body).splitlines() if "finepseudo's f_E" in line]
    assert words in line
    assert figure(Share(value, se), "+") in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (Share(math.nan, math.nan), "-"),
        (Share(0.95, 0.009), ".950 ±.009"),
        (Share(1.0, 0.0), "1.000 ±.000"),
        (Share(0.9996, None), "1.000 ±?"),
        (Share(-0.0601, 0.01), "-.060 ±.010"),
        (Share(-0.0001, 0.01), ".000 ±.010"),
    ],
)
def test_figures(value, text):
    assert figure(value) == text


def test_many_rounds_are_cut_to_the_last_ones():
    text = summary(results(rounds=6))
    assert "finepseudo, round 6" in text
    assert "round 5" not in text
    assert "earlier rounds are on the page" in text


def test_one_pass_for_several_methods_is_counted_once():
    body = results()
    seconds = {"start": 3.0, "decode": 2.0, "predict": 1.0, "total": 6.0, "rows": 16.0}
    body.timing.update({f"labels/{name}/round-1": dict(seconds) for name in ("finepseudo", "pseudo_video")})
    assert "the pool's 2 passes over videos: start 4 s" in summary(body)
    assert "arithmetic 5 s (50%)" in summary(body)


@pytest.mark.parametrize(
    "body",
    [
        results(methods=()),
        results(methods=("supervised",), pairs=False),
        results(dtw=math.nan),
        replace(results(), timing={}, rounds={"finepseudo": [labels("finepseudo/round-1", accepted=0)]}),
    ],
    ids=("no method", "supervised alone", "pair test without figures", "nothing accepted"),
)
def test_missing_pieces_leave_a_whole_page(tmp_path, body):
    page = page_of(a_run(tmp_path), body)
    assert page.rstrip().endswith("</html>")
    check_self_contained(page)


def test_page_of_figures_alone(tmp_path):
    run = a_run(tmp_path)
    curve = pa.table({"step": list(range(1, 101)), "loss": [math.exp(-step / 30) for step in range(100)]})
    parts = {
        "curve.parquet": artefacts.table_bytes(curve),
        "rejected.parquet": artefacts.table_bytes(REJECTED.empty_table()),
        "taken.json": json.dumps(vars(Taken())).encode(),
    }
    base = Store(str(tmp_path / "base"))
    artefacts.commit(base, "train/align/frame/history/00000000-00000100", parts, {})
    page = page_of(run, results(), base)
    check_self_contained(page)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert ".700 ±.012" in page
    assert "+.050 ±.020" in page
    assert "No method of this run" in page
    assert "Learning curves" in page
    assert re.search(r"&lt;script&gt;alert\(&#39;x&#39;\)&lt;/script&gt;</th><td>3</td><td>\.500</td>", page)
    cells = (".500 (.400 to .600)", "-.200 (-.300 to .100)", ".800 (.700 to .900)", ".300")
    assert "<td>".join(["pre-trained</th>", *(f"{cell}</td>" for cell in cells)]) in page
    assert "<td>".join(["after L_AV</th>", ".750 (.625 to .875)</td>", *3 * ["not known</td>"]]) in page
    assert re.search(r"finepseudo fused</th><td>tuck</td><td>twist</td><td>7</td><td>\.875<", page)
    assert page_of(run, results(), base) == page


@pytest.mark.parametrize(
    ("fusion", "said"), [("product", "p_E and p_A multiplied"), ("mean", "the mean of p_E and p_A")]
)
def test_page_says_how_the_fused_prediction_is_made_and_which_one_counts(fusion, said, tmp_path):
    run = Store(str(tmp_path))
    claim(run, changed(find("rehearsal_smoke"), {"label.fusion": fusion}))
    page = page_of(run, results(("finepseudo",), rounds=1))
    assert f"fused: {said}" in page
    assert "the run stands by the fused prediction of finepseudo" in page


def test_page_and_summary_tell_of_novel_videos(tmp_path):
    found = OpenWorld(5, {name: Share(0.875, 0.03) for name in ("knownness", "p_A", "p_E")}, Share(0.031, 0.01), 0.75)
    one = labels("finepseudo/round-1")
    body = replace(results(), rounds={"finepseudo": [replace(one, quality=replace(one.quality, open_world=found))]})
    page = page_of(a_run(tmp_path), body)
    cells = ("5 of 16", *3 * [".875 ±.030"], ".031 ±.010", ".750 ±.131")
    assert "finepseudo, round 1</th>" + "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert "novel 5 of 16; AUROC of known-ness .875 ±.030; contamination .031 ±.010" in summary(body)
    assert "without a labelled video" not in page_of(a_run(tmp_path / "closed"), results(rounds=1))


def test_page_without_videos_still_has_the_figures(tmp_path):
    page = page_of(a_run(tmp_path), results(rounds=1))
    assert re.search(r"No examples could be shown: \S*/manifest: not committed", page)
    assert "finepseudo, round 1" in page
    assert '<th scope="col">p_A right</th>' in page


@pytest.fixture
def labelled_run(tmp_path):
    """A run with four real videos whose names are hostile: two labelled, two with a pseudo-label."""
    recipe, spec = find("rehearsal_smoke"), Rehearsal(words=("TW-U", "TP-F"), train_per_class=2, test_per_class=1)
    run, ids = a_run(tmp_path), rehearsal.video_ids(spec, "train") + rehearsal.video_ids(spec, "test")
    files = [rehearsal.video(spec, "train" if number < 4 else "test", ids[number][0])[0] for number in range(len(ids))]
    for number, data in enumerate(files):
        run.write(f"data/{number}.mp4", data)
    lengths = [answer({"uri": run.uri(f"data/{number}.mp4")})[0]["num_frames"] for number in range(len(ids))]
    made = clips.manifest(
        len(ids),
        [label for _, label in ids],
        (f"{HOSTILE} tuck", "pike"),
        video_id=[f"{HOSTILE}{number}" for number in range(len(ids))],
        path=[f"{number}.mp4" for number in range(len(ids))],
        sha256=[hashlib.sha256(data).hexdigest() for data in files],
        split=["train"] * 4 + ["test"] * (len(ids) - 4),
        num_frames=lengths,
        file_frames=lengths,
        height=spec.size,
        width=spec.size,
    )
    clips.commit(run, made)
    encoder = random_encoder(recipe.models.encoder("frame"), num_classes=2, size=recipe.frames.crop, seed=0)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    artefacts.commit(run, "train/align/frame/snapshot", {"weights.safetensors": weights.to_bytes(state, {})}, {})
    emb_NTD = torch.nn.functional.normalize(torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    embedded = Embeddings(emb_NTD, tuple(made.ids(np.array([0, 2, 4]))))  # the last one is of the pair test
    labelled = json.dumps({"labelled": made.ids(np.array([0, 2]))}).encode()
    artefacts.commit(run, "split", {"split-seed0.json": labelled}, {})
    artefacts.commit(run, "embeddings/aligned", {"embeddings.safetensors": embedded.to_bytes()}, {})
    rows = [
        {"video_id": made.ids(np.array([clip]))[0], "clip": clip, "label": 0, "confidence": 0.9 - 0.3 * n,
         "accepted": n == 0, "label_A": 0, "label_E": 1, "confidence_A": 0.9, "confidence_E": 0.5}
        for n, clip in enumerate((1, 3))
    ]  # fmt: skip
    table = artefacts.table_bytes(pa.Table.from_pylist(rows))
    artefacts.commit(run, "labels/finepseudo/round-1", {"labels.parquet": table, "fusion.json": b"{}"}, {})
    return run


def test_examples_show_frames_and_escape_their_names(labelled_run):
    page = page_of(labelled_run, results(rounds=1))
    check_self_contained(page)
    assert HOSTILE not in page
    assert "No examples" not in page
    assert len(re.findall(r'<img class="(?:mine|theirs)" src="data:image/jpeg;base64,', page)) == 4
    assert "<h3>rejected</h3>" in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; tuck" in page


def test_examples_stand_beside_the_right_clips(labelled_run):
    """Clips are known by their rows; labels of the nearest member come from the truth, and no test video is one."""
    body = results(rounds=1)
    labelled_run.write("results.json", body.to_json())
    first, second = choose_examples(Run.at(labelled_run), body)
    assert [first.kind, second.kind] == ["accepted, wrong", "rejected"]
    assert [first.video_id, second.video_id] == [f"{HOSTILE}1", f"{HOSTILE}3"]
    assert (first.truth, second.truth) == ("pike", f"{HOSTILE} tuck")
    classes = {f"{HOSTILE}0": "pike", f"{HOSTILE}2": f"{HOSTILE} tuck"}
    for example in (first, second):
        assert example.neighbour == classes[example.neighbour_id]
        frames = len(example.path)
        assert [*example.path] == sorted(example.path), "a path goes forward"
        assert 0 <= example.path[0] <= example.path[-1] < frames
        for name, strip in ((example.video_id, example.strip), (example.neighbour_id, example.neighbour_strip)):
            with Image.open(io.BytesIO(base64.b64decode(strip))) as picture:
                assert picture.size == (frames * SIDE, SIDE)
                first_HWC = np.asarray(picture.convert("RGB"))[:, :SIDE].astype(float)
            assert np.abs(first_HWC - first_frame(labelled_run, name)).mean() < 6


def test_examples_take_turns_and_stop_where_the_room_ends(labelled_run, monkeypatch):
    body = results(rounds=1)
    labelled_run.write("results.json", body.to_json())
    first, _ = choose_examples(Run.at(labelled_run), body)
    monkeypatch.setattr(examples, "ROOM", len(first.strip) + len(first.neighbour_strip))
    assert [one.kind for one in choose_examples(Run.at(labelled_run), body)] == ["accepted, wrong"]


def first_frame(run, video_id):
    """The first frame of the file of a clip, as it is shown."""
    row = Run.at(run).manifest().clips.filter(pc.field("video_id") == video_id).to_pylist()[0]
    child = Child(60)
    frames_FHWC = child.frames(run.uri(f"data/{row['path']}"), row, [0], SIDE, SIDE)
    child.close()
    return frames_FHWC[0]


def test_examples_are_of_each_kind_the_surest_and_the_least_sure():
    accepted = [True] * 6 + [False] * 6
    table = pa.table(
        {
            "clip": np.arange(12)[::-1],
            "label": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "confidence": [0.9, 0.8, 0.8, 0.7, 0.6, 0.99, 0.4, 0.3, 0.2, 0.2, 0.1, 0.45],
            "accepted": accepted,
        }
    )
    truth_N = np.array([0, 1, 1, -1, 0, 0, 0, 0, 0, -1, 1, 1])
    found = {kind: places.tolist() for kind, places in _chosen(table, truth_N).items()}
    assert found == {
        "accepted, right": [5, 0, 4],
        "accepted, wrong": [2, 1],
        "accepted, truth not known": [3],
        "rejected": [10, 8, 9, 7, 6, 11],
    }


def test_examples_leave_out_what_no_longer_decodes(labelled_run):
    labelled_run.delete("data")
    page = page_of(labelled_run, results(rounds=1))
    assert "<img" not in page
    assert "finepseudo, round 1" in page
