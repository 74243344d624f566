"""The run page, and that of runs side by side, in a real browser: keys, players, contrast, no network, no errors."""

import dataclasses
import importlib
import itertools
import json
import re
from pathlib import Path

import chromium
import numpy as np
import pyarrow as pa
import pytest
from labelled_run import labelled_run as committed_run
from test_report import HOSTILE, labelled_run, page_of, results

from finepseudo.errors import ArtefactError, RecipeError
from finepseudo.recipe import changed, described, digest
from finepseudo.report.beside import side_by_side
from finepseudo.report.lineage import Made, _in_order
from finepseudo.report.trust import matrix
from finepseudo.results import Share
from finepseudo.run import RECIPE
from finepseudo.storage import artefacts

__all__ = ["labelled_run"]

# Of every text that is seen, the contrast with what it stands on; the lowest ones, with the text.
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (value) => value / 255 <= .04045 ? value / 255 / 12.92 : ((value / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const there = rgb(getComputedStyle(at).backgroundColor);
      if (there[3] === 255) return there;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length || element.closest("script")) continue;
    const style = getComputedStyle(element), ink = element.closest("svg") ? style.fill : style.color;
    const [less, more] = [light(rgb(ink)), light(behind(element))].sort((x, y) => x - y);
    found.push([(more + .05) / (less + .05), text.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()"""
NAMELESS = ("button", "slider", "image", "link", "region", "navigation", "heading", "table")


@pytest.fixture
def page(labelled_run, tmp_path):
    """The page of a run with two examples, and where it lies."""
    labelled_run.write("page.html", page_of(labelled_run, results(rounds=1)).encode())
    return tmp_path / "page.html"


def names(shown):
    """Roles and names of what a screen reader meets."""
    nodes = shown.ask("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    return [(role, name) for role, name in told if role in NAMELESS]


@chromium.wanted
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_can_be_read_and_everything_has_a_name(page, tmp_path, dark):
    with chromium.Page(page, tmp_path, dark=dark) as shown:
        paper = shown.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        assert shown.value("getComputedStyle(document.querySelector('svg.plot text')).fill") == shown.value(
            "getComputedStyle(document.body).color"
        )
        worst = shown.value(CONTRAST)
        assert worst[0][0] >= 4.5, worst
        assert [role for role, name in names(shown) if not name] == []
        levels = shown.value("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert shown.value("['header', 'nav', 'main'].map((one) => document.querySelectorAll(one).length)") == [1, 1, 1]
        links = shown.value("[...document.querySelectorAll('a')].map((one) => one.getAttribute('href'))")
        assert all(shown.value(f"document.querySelector({json.dumps(link)}) !== null") for link in links)
        ids = shown.value("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len({*ids})
        assert shown.said == []
        assert shown.asked == [f"file://{page}"]


@chromium.wanted
def test_a_table_sorts_by_keys(page, tmp_path):
    table = "document.querySelector('#classes table')"
    column = f"[...{table}.tBodies[0].rows].map((row) => row.cells[2].textContent)"
    states = f"[...{table}.tHead.rows[0].cells].map((head) => head.getAttribute('aria-sort'))"
    with chromium.Page(page, tmp_path) as shown:
        assert shown.value(column) == [".500", "-", "1.000", ".000", ".250", ".750"]
        shown.value(f"{table}.tHead.rows[0].cells[2].firstChild.focus()")
        shown.key("Enter")
        assert shown.value(column) == [".000", ".250", ".500", ".750", "1.000", "-"]
        assert shown.value(states)[2] == "ascending"
        shown.key(" ")
        assert shown.value(column) == ["1.000", ".750", ".500", ".250", ".000", "-"]
        assert shown.value(states).count("none") == len(shown.value(states)) - 1
        assert shown.value(states)[2] == "descending"
        shown.value(f"{table}.tHead.rows[0].cells[0].firstChild.click()")
        assert shown.value(f"{table}.tBodies[0].rows[1].cells[0].textContent") == "fold"
        assert shown.said == []


@chromium.wanted
def test_a_slider_moves_both_clips_along_the_path(page, tmp_path):
    frames = len(re.search('data-path="([^"]*)"', page.read_text())[1].split(","))
    path = [frame // 2 for frame in range(frames)]  # one that no clip has with itself
    page.write_text(re.sub('data-path="[^"]*"', f'data-path="{",".join(map(str, path))}"', page.read_text(), count=1))
    with chromium.Page(page, tmp_path) as shown:
        frames = (
            "[...document.querySelectorAll('.example')[0].querySelectorAll('canvas')].map((one) => one.dataset.frame)"
        )
        drawn = "document.querySelector('.example canvas').toDataURL()"
        shown.until("document.querySelector('.example canvas').width === 128")
        first = shown.value(drawn)
        shown.value("document.querySelector('.example input').focus()")
        for frame in range(1, len(path)):
            shown.key("ArrowRight")
            assert shown.value(frames) == [str(frame), str(path[frame])]
        assert shown.value(drawn) != first
        said = shown.value("document.querySelector('.example input').getAttribute('aria-valuetext')")
        assert said == f"frame {len(path)} of {len(path)} beside {path[-1] + 1}"
        shown.value("document.querySelector('.example button').click()")
        shown.until(f"document.querySelector('.example canvas').dataset.frame !== '{len(path) - 1}'")
        assert shown.value("document.querySelector('.example button').getAttribute('aria-pressed')") == "true"
        other = shown.value("document.querySelectorAll('.example')[1].querySelector('canvas').dataset.frame")
        assert other == "0", "each example plays alone"
        assert shown.said == []


def two_runs(folder):
    """Runs whose recipes differ in one field; the second numbers two classes otherwise, and is wrong once more."""
    runs = []
    for name, margin, top1, classes, truth, guess in (
        ("first", 0.1, 0.75, ("pike", "twist"), [0, 0, 0, 2], [0, 0, 1, 2]),
        ("second", 0.5, 0.5, ("twist", "pike"), [0, 0, 0, 1], [2, 2, 0, 1]),
    ):
        run, body = committed_run(folder / name, rounds=1), results(rounds=1)
        recipe = changed(run.recipe(), {"align.margin": margin})
        run.store.write(RECIPE, json.dumps({"digest": digest(recipe), "recipe": described(recipe)}).encode())
        found = body.measured["finepseudo"]
        fused = dataclasses.replace(found.fused, top1=Share(top1, 0.1))
        body.measured["finepseudo"] = dataclasses.replace(found, fused=fused)
        body.classes[1:3] = classes
        table = pa.table({"video_id": ["a", "b", "c", "d"], "truth": truth, "finepseudo/fused": guess})
        artefacts.commit(run.store, "results/1", {"predictions.parquet": artefacts.table_bytes(table)}, {})
        run.store.write("results.json", body.to_json())
        runs.append(run)
    return runs


def test_runs_are_compared_video_by_video_and_field_by_field(tmp_path):
    text = side_by_side(two_runs(tmp_path))
    assert "align.margin</th><td>0.1</td><td>0.5</td>" in text
    assert "align.steps" not in text
    assert "finepseudo, fused</th><td>.750 ±.100</td><td>.500 ±.100</td><td>-.250 ±.479</td>" in text
    assert "supervised, f_E</th><td>.700 ±.012</td><td>.700 ±.012</td><td>-</td>" in text
    assert HOSTILE not in text


@chromium.wanted
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_runs_side_by_side_can_be_read(tmp_path, dark):
    (tmp_path / "beside.html").write_text(side_by_side(two_runs(tmp_path)))
    with chromium.Page(tmp_path / "beside.html", tmp_path, dark=dark) as shown:
        worst = shown.value(CONTRAST)
        assert worst[0][0] >= 4.5, worst
        assert [role for role, name in names(shown) if not name] == []
        assert shown.said == []
        assert shown.asked == [f"file://{tmp_path}/beside.html"]


def test_the_job_writes_one_run_again_and_several_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "jobs")
    job = importlib.import_module("report").job
    first, second = (one.store.uri() for one in two_runs(tmp_path))
    job([first])
    assert capsys.readouterr().out == f"page: {first}/report.html\n"
    job([first, second, "--to", str(tmp_path / "both.html")])
    assert "2 runs side by side" in (tmp_path / "both.html").read_text()
    with pytest.raises(RecipeError, match="2 run directories: --to FILE.html says where"):
        job([first, second])
    with pytest.raises(RecipeError, match="expected 1 to 6 run directories, got 7"):
        job([first] * 7)
    with pytest.raises(ArtefactError, match="has no results yet"):
        job([first, str(tmp_path / "none"), "--to", str(tmp_path / "no.html")])
    assert not (tmp_path / "no.html").exists()


def test_an_artefact_stands_behind_what_it_was_made_of():
    found = [Made("c", "3", ("2", "elsewhere"), ""), Made("a", "1", (), ""), Made("b", "2", ("1",), "")]
    assert [one.name for one in _in_order(found)] == ["a", "b", "c"]
    assert len(_in_order([Made("x", "1", ("2",), ""), Made("y", "2", ("1",), "")])) == 2


def test_lineage_names_what_everything_was_made_of(labelled_run):
    text = page_of(labelled_run, results(rounds=1))
    assert "labels of finepseudo/round-1</th>" in text
    assert "embeddings aligned</th>" in text
    assert "a1 (train/align/frame/snapshot)" in text, "weights that are not there are named by where they lay"
    assert "Not known" not in text[text.index('id="lineage"') :]


def test_a_thousand_classes_make_a_small_matrix():
    share_KK = np.random.default_rng(0).dirichlet(np.full(1000, 0.01), 1000)
    assert len(matrix(share_KK, [f"class {number}" for number in range(1000)])) < 1_000_000
    assert "h1v1" in matrix(np.eye(2), ["a", "b<c"])
    assert "b&lt;c" in matrix(np.eye(2), ["a", "b<c"])


def test_what_was_left_out_is_told_with_reasons(tmp_path):
    reasons = [""] * 14 + [f"{HOSTILE}: {number}" for number in range(26)]
    run = committed_run(tmp_path, count=40, status=["ok"] * 14 + ["rejected"] * 26, reason=reasons)
    text = page_of(run.store, results(rounds=1))
    assert "26 clips were rejected" in text
    assert "The first 20 are below." in text
    assert "&lt;/script&gt;: 19</td>" in text
    assert "&lt;/script&gt;: 20</td>" not in text
    assert "manifest/clips.parquet" in text


def test_what_a_pass_could_not_decode_is_told_with_reasons(tmp_path):
    run = committed_run(tmp_path, undecoded=[7, 8])
    folder = "labels/finepseudo/round-2"
    told = {"predict": 1.0, "decode": 1.0, "clips": 9.0, "rejected": 2.0}
    text = page_of(run.store, dataclasses.replace(results(rounds=1), timing={folder: told}))
    assert "2 of 9 clips" in text
    assert "v008: cut: 8" in text
    assert f"{folder}/left_out.json" in text
