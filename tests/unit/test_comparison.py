"""Label seeds, ablations and budgets side by side, against figures that were taken by hand."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from test_report import labels as sample_labels
from test_report import results as sample_results

from finepseudo.errors import TrainingError
from finepseudo.recipe import METHODS
from finepseudo.recipes import find
from finepseudo.recipes.variants import variants
from finepseudo.report.comparison import compare, tables
from finepseudo.report.curve import BOTTOM, LEFT, RIGHT, TOP, budget_curve
from finepseudo.results import OpenWorld, Share

SVG = "{http://www.w3.org/2000/svg}"


def result(f_E, fused, *, behind=0.1, labelled=4):
    """Every method is `behind` finepseudo."""
    whole = sample_results(tuple(METHODS))
    (any_of, *_) = whole.measured.values()

    def measured(less):
        values = {"f_E": f_E - less, "fused": fused - less, "p_A": fused - less}
        parts = {part: replace(getattr(any_of, part), top1=Share(value, 0.01)) for part, value in values.items()}
        return replace(any_of, **parts)

    every = {name: measured(0.0 if name == "finepseudo" else behind) for name in whole.measured}
    return replace(whole, measured=every, split=replace(whole.split, labelled=labelled))


def test_comparison_takes_differences_seed_by_seed():
    compared = compare({0: result(0.8, 0.9), 1: result(0.6, 0.9, labelled=6)})
    assert compared.top1["finepseudo"]["f_E"].mean == pytest.approx(0.7)
    assert compared.top1["finepseudo"]["f_E"].se == pytest.approx(0.1)
    gain = compared.differences["finepseudo f_E - supervised f_E"]
    assert gain.mean == pytest.approx(0.1)
    assert gain.se == pytest.approx(0.0, abs=1e-12)
    assert compared.differences["finepseudo fused - pseudo_align fused"].mean == pytest.approx(0.1)
    assert "+0.100" in compared.table()
    assert compared.labelled == [4, 6]


def test_one_seed_has_no_error_of_its_mean():
    compared = compare({3: result(0.8, 0.9)})
    assert compared.top1["finepseudo"]["fused"].se is None
    assert compared.table().splitlines()[2].endswith("  -")


def test_figures_that_not_every_seed_has_are_left_out():
    first, second = result(0.8, 0.9), result(0.7, 0.9)
    both = compare({0: first, 1: second})
    assert both.pairs["dtw"].by_seed == [0.8, 0.8]
    assert both.frames["pretrained"]["progression"].mean == pytest.approx(-0.2)
    assert both.frames["aligned"].keys() == {"kendall_tau"}
    less = replace(second, pairs=replace(second.pairs, scores={}), frames={"aligned": second.frames["aligned"]})
    assert compare({0: first, 1: less}).pairs == {}
    assert compare({0: first, 1: less}).frames.keys() == {"aligned"}


RUNS = {
    one.folder: one for one in variants(find("rehearsal_smoke"), (0, 1), ablations=True, budgets=(0.0625, 0.25, 0.5))
}
BY_FOLDER = {
    "seed-0": result(0.8, 0.9),
    "seed-1": result(0.6, 0.7),
    "no_L_AT/seed-0": result(0.7, 0.9),
    "no_L_AT/seed-1": result(0.4, 0.7),
    "no_L_Score/seed-0": TrainingError("one class, a|b,\ntakes most"),
    "no_L_Score/seed-1": result(0.6, 0.8),
    "no_GITDL/seed-0": replace(result(0.1, 0.1), measured={}),
    "no_GITDL/seed-1": TrainingError("nothing is accepted"),
    "labels-0.0625/seed-0": result(0.3, 0.4, behind=0.2, labelled=2),
    "labels-0.0625/seed-1": result(0.4, 0.5, behind=0.1, labelled=2),
    "labels-0.5/seed-0": result(0.95, 0.95, behind=0.05, labelled=8),
    "labels-0.5/seed-1": result(0.95, 0.95, behind=0.05, labelled=8),
}
FOUND = [(RUNS[folder], of) for folder, of in BY_FOLDER.items()]


def test_ablations_lose_or_gain_over_the_same_seeds_of_the_whole():
    found = tables(FOUND, own=0.25).ablations
    assert list(found) == ["no_L_AT", "no_L_Score", "f_E only", "f_A only"]
    assert found["no_L_AT"].gain["f_E"].by_seed == pytest.approx([-0.1, -0.2])
    assert found["no_L_AT"].gain["f_E"].se == pytest.approx(0.05)
    assert found["no_L_AT"].gain["fused"].mean == pytest.approx(0.0)
    assert found["no_L_Score"].top1["fused"].by_seed == [0.8]
    assert found["no_L_Score"].gain["fused"].by_seed == pytest.approx([0.1]), "seed 1 of both"
    assert found["f_E only"].gain["f_E"].by_seed == pytest.approx([-0.1, -0.1])
    assert tables(FOUND[:2], own=0.25).ablations == {}


def test_budgets_have_the_recipes_own_among_them():
    found = tables(FOUND[::-1], own=0.25).budgets
    assert list(found) == [0.0625, 0.25, 0.5]
    assert [one.labelled for one in found.values()] == [[2, 2], [4, 4], [8, 8]]
    assert found[0.25] == compare({0: BY_FOLDER["seed-0"], 1: BY_FOLDER["seed-1"]})
    assert found[0.0625].differences["finepseudo f_E - supervised f_E"].by_seed == pytest.approx([0.2, 0.1])
    assert tables(FOUND[:4], own=0.25).budgets == {}


def novel(of, *, contamination, area=0.9):
    """The same results, with a round that met novel videos."""
    share = Share(contamination, 0.01) if contamination is not None else None
    found = OpenWorld(5, dict.fromkeys(("knownness", "p_A", "p_E"), Share(area, 0.02)), share, 0.5)
    one = sample_labels("finepseudo/round-1")
    return replace(of, rounds={"finepseudo": [replace(one, quality=replace(one.quality, open_world=found))]})


def test_open_worlds_stand_beside_the_closed_one():
    runs = {one.folder: one for one in variants(find("rehearsal_smoke"), (0, 1), novel=("TW-U",))}
    closed = replace(result(0.8, 0.9), rounds={"finepseudo": [sample_labels("finepseudo/round-1")]})
    by_folder = {
        "seed-0": result(0.8, 0.9),
        "open/seed-0": novel(result(0.75, 0.9), contamination=0.02),
        "open/seed-1": novel(result(0.65, 0.9), contamination=0.04, area=0.8),
        "open_unfiltered/seed-0": novel(result(0.6, 0.7), contamination=None),
        "open_unfiltered/seed-1": TrainingError("nothing is accepted"),
        "closed/seed-0": closed,
    }
    found = tables([(runs[folder], of) for folder, of in by_folder.items()], own=0.25)
    assert list(found.worlds) == ["open", "open_unfiltered", "closed"]
    opened, unfiltered, left = found.worlds.values()
    assert opened.top1["f_E"].by_seed == pytest.approx([0.75, 0.65])
    assert opened.gain["f_E"].by_seed == pytest.approx([-0.05]), "the one seed that the closed world has"
    assert opened.novelty["contamination"].mean == pytest.approx(0.03)
    assert opened.novelty["auroc_knownness"].by_seed == pytest.approx([0.9, 0.8])
    assert "contamination" not in unfiltered.novelty, "nothing was accepted"
    assert (left.gain, left.novelty) == ({}, {})
    text = found.markdown()
    assert re.search(r"\| open +\| 0?\.700 .*0?\.030", text), text
    assert found.whole.seeds == [0]
    assert "Open world" not in tables(FOUND, own=0.25).markdown()


def test_runs_without_figures_are_named_and_some_are_needed():
    assert set(tables(FOUND, own=0.25).failed) == {"no_L_Score/seed-0", "no_GITDL/seed-0", "no_GITDL/seed-1"}
    with pytest.raises(TrainingError, match="seed-0: no test video has a label"):
        tables([(RUNS["seed-0"], replace(result(0.1, 0.1), measured={}))], own=0.25)


def rows(text):
    """Of all tables, by their first cell; later ones of the same name are beside."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *others = re.split(r"(?<!\\) \| ?", line[2:-1].rstrip() + " | ")[:-1]
            found.setdefault(first, []).append(others)
    return found


def test_markdown_has_every_figure_with_its_error():
    text = tables(FOUND, own=0.25).markdown("budgets.svg")
    found = rows(text)
    assert found["finepseudo"][0] == [".700 ±.100", ".800 ±.100", ".800 ±.100"]
    assert found["finepseudo f_E - supervised f_E"] == [["+.100 ±.000"], ["+.150 ±.050", "+.100 ±.000", "+.050 ±.000"]]
    assert found["no L_AT"] == [["2", ".550 ±.150", ".800 ±.100", "-.150 ±.050", "+.000 ±.000"]]
    assert found["no L_Score"] == [["1", ".600 ±?", ".800 ±?", "+.000 ±?", "+.100 ±?"]]
    assert found["f_A only"][0][3] == "-.100 ±.000"
    assert found["finepseudo"][1] == [".350 ±.050", ".700 ±.100", ".950 ±.000"]
    assert found["finepseudo"][2] == [".450 ±.050", ".800 ±.100", ".950 ±.000"]
    assert found["labelled clips"][0] == ["2", "4", "8"]
    assert found["seeds"][0] == ["2", "2", "2"]
    assert found["soft-DTW, pre-trained f_A"] == [[".800 ±.000"]]
    assert found["pre-trained"] == [[".500 ±.000", "-.200 ±.000", ".800 ±.000"]]
    assert found["after L_AV"] == [[".750 ±.000", "-", "-"]]
    assert found["no_L_Score/seed-0"] == [[r"one class, a\|b, takes most"]]
    assert "![top-1 by share of labels](budgets.svg)" in text
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| supervised |")}
    assert columns == {5}, "a table's rows are as wide as its head"


def test_what_was_not_asked_for_has_no_table():
    text = tables(FOUND[:2], own=0.25).markdown()
    assert not re.search("Ablations|Budgets|without results|!\\[", text)
    assert json.loads(tables(FOUND[:2], own=0.25).to_json())["seeds"] == [0, 1]


def test_json_holds_every_table():
    body = json.loads(tables(FOUND, own=0.25).to_json())
    assert {
        "seeds",
        "labelled",
        "top1",
        "differences",
        "pairs",
        "frames",
        "ablations",
        "budgets",
        "worlds",
        "failed",
    } == set(body)
    assert body["budgets"]["0.0625"]["top1"]["finepseudo"]["f_E"]["by_seed"] == [0.3, 0.4]


def test_curve_goes_through_its_means_on_a_logarithmic_axis():
    drawn = ET.fromstring(budget_curve(tables(FOUND, own=0.25).budgets))
    paths = [line.get("points") for line in drawn.iter(f"{SVG}polyline")]
    assert len(paths) == len(METHODS) + 1
    of = dict(zip([*METHODS, "finepseudo, fused"], paths, strict=True))
    points = [tuple(map(float, point.split(","))) for point in of["finepseudo"].split()]
    # From .0625 to .5, .25 is two of three doublings. The axis starts at .1: supervised's mean of .2 less its s.e.
    assert [x for x, _ in points] == pytest.approx([LEFT, LEFT + (RIGHT - LEFT) * 2 / 3, RIGHT], abs=0.06)
    low = 0.1
    expected = [BOTTOM - (BOTTOM - TOP) * (value - low) / (1 - low) for value in (0.35, 0.7, 0.95)]
    assert [y for _, y in points] == pytest.approx(expected, abs=0.06)
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"6.25 %", "25 %", "50 %", *METHODS, "finepseudo, fused"} <= set(texts)
    bar = [line for line in drawn.iter(f"{SVG}line") if line.get("x1") == line.get("x2") == f"{points[1][0]:.1f}"]
    lengths = {round(abs(float(line.get("y1")) - float(line.get("y2")))) for line in bar}
    assert round((BOTTOM - TOP) * 0.2 / (1 - low)) in lengths, "one s.e. each way"


def test_curve_of_one_budget_and_one_seed():
    drawn = ET.fromstring(budget_curve({0.1: compare({0: result(0.0, 1.0, behind=0.0)})}))
    assert len(list(drawn.iter(f"{SVG}polyline"))) == len(METHODS) + 1
