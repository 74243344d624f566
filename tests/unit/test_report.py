"""The last lines of a run and its page say what was measured, whatever it is, and need nothing but themselves."""

import json
import re

import pytest

from finepseudo.recipe import decisive
from finepseudo.recipes import find
from finepseudo.report import summary, write_report
from finepseudo.storage import Store

HOSTILE = "<script>alert('x')</script>"


def accuracy(top1):
    figures = {"top1": top1, "top5": 0.9, "mean_class": top1}
    errors = {f"{name}_se": 0.012 for name in figures}
    return {**figures, **errors, "calibration_error": 0.05, "per_class": [0.5, None], "videos": 40}


def results(methods=("supervised", "finepseudo"), dtw=0.8, pairs=True):
    values = {"pooled_cosine": 0.6, "timestamp_cosine": 0.7, "dtw": dtw, "score": 0.9}
    found = {"pairs": 100, "videos": 20, "same": 10}
    if pairs:
        found |= {name: {"value": value, "se": 0.01} for name, value in values.items()}
    body = {
        "recipe": {"name": HOSTILE, "digest": "abc", "seed": 0},
        "split": {"seed": 0, "fingerprint": "def", "labelled": 4, "unlabelled": 16},
        "manifest": {"fingerprint": "123", "rejected": 1},
        "classes": [HOSTILE, "pike"],
        "pairs": found,
        "gains": {"f_E, over supervised": {"value": 0.05, "se": 0.02}} if len(methods) > 1 else {},
        "rounds": {name: [] for name in methods},
        "timing": {"gallery/aligned": {"start": 1.0, "decode": 0.1, "predict": 0.2, "total": 2.0, "rows": 20.0}},
    }
    return body | {name: {part: accuracy(0.7) for part in ("f_E", "p_A", "fused")} for name in ("stage_2", *methods)}


@pytest.mark.parametrize(
    "methods",
    [("supervised",), ("finepseudo", "supervised"), ("pseudo_video", "pseudo_align", "supervised_2x", "finepseudo")],
)
def test_summary_gives_every_method_with_its_standard_error(methods):
    text = summary(results(methods))
    for name in methods:
        assert re.search(rf"{name}.*0\.700 ±0\.012 .*0\.700 ±0\.012", text)
    assert "soft-DTW, pre-trained f_A         0.800 ±0.010" in text
    assert max(map(len, text.splitlines())) <= 130


def test_summary_is_honest_about_the_order():
    assert "holds" in summary(results())
    assert "does NOT hold" in summary(results(dtw=0.65))
    assert "not possible" in summary(results(pairs=False))


def test_page_is_self_contained_and_escapes_names(tmp_path):
    run = Store(str(tmp_path))
    run.write("recipe.json", json.dumps({"recipe": decisive(find("rehearsal_smoke"))}).encode())
    assert write_report(run, results()) == run.uri("report.html")
    page = run.read("report.html").decode()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "0.700 ±0.012" in page
    assert "No method of this run" in page
