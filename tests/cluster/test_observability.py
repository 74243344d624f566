"""The dashboard, the alerts and the table in the docs speak of metrics that exist."""

import importlib.util
import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from finepseudo.metrics import METRICS, table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/observability"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"][0]["rules"]
LABELS = {one.exported: set(one.labels) for one in METRICS}
# Ray's own dashboards name what Ray has. Ray is not imported: the test of a cluster says first how it authenticates.
RAY = Path(importlib.util.find_spec("ray").origin).parent
RAYS = {
    name
    for path in (RAY / "dashboard/modules/metrics/dashboards").glob("*.py")
    for name in re.findall(r"\bray_\w+", path.read_text())
}


def selectors(expression):
    """Every metric that an expression asks for, with the labels by which it chooses; ValueError: it is no PromQL."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
        for name in ("lhs", "rhs", "expr", "vector_selector"):
            if (inner := getattr(node, name, None)) is not None:
                visit(inner)
        for inner in getattr(node, "args", None) or []:
            visit(inner)

    visit(promql_parser.parse(expression))
    return found


def wrong(expression):
    """What an expression asks for that nobody shows."""
    for name, labels in selectors(expression):
        if name not in LABELS and name not in RAYS:
            yield name
        if labels - LABELS.get(name, labels):
            yield f"{name} by {labels}"


def expressions():
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_expressions_ask_for_what_there_is(title, expression):
    assert list(wrong(expression)) == []


def test_wrong_expressions_are_found():
    assert list(wrong("max by (run) (ray_finepseudo_losses)")) == ["ray_finepseudo_losses"]
    assert list(wrong('time() - ray_finepseudo_loss{round="1"} > 3')) == ["ray_finepseudo_loss by {'round'}"]
    assert list(wrong("delta(ray_none[5m]) and on (run) (2 * ray_nobody)")) == ["ray_none", "ray_nobody"]
    with pytest.raises(ValueError, match="invalid promql"):
        list(wrong("ray_finepseudo_loss >"))


def test_every_metric_is_on_the_dashboard():
    shown = {name for panel in PANELS for target in panel["targets"] for name, _ in selectors(target["expr"])}
    assert shown >= set(LABELS)


def test_panels_lie_side_by_side():
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(places) == len(set(places))
    assert {x for x, _ in places} == set(range(24))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("word", ["guard_min_coverage", "guard_min_agreement", "guard_max_class", "guard_max_rejected"])
def test_every_bound_of_the_guard_has_an_alert(word):
    (rule,) = [rule for rule in RULES if word in rule["expr"]]
    # A value below a lower bound, or above an upper one, that many times the bound.
    assert re.search(rf"{'<' if 'min' in word else '>'}\s+on \(run\) group_left \(\) \([\d.]+ \* max", rule["expr"])


def test_alerts_say_what_to_do():
    for rule in RULES:
        assert {"summary", "description"} <= rule["annotations"].keys()
        known = set().union(*(LABELS.get(name, set()) for name, _ in selectors(rule["expr"])))
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= known


def test_names_follow_prometheus():
    for one in METRICS:
        assert re.fullmatch(r"finepseudo(_[a-z]+)+", one.name)
        assert ("ratio" in one.name) == (one.unit == "0 to 1"), one.name
        assert one.name.endswith("_seconds") == ("seconds" in one.unit), one.name
        assert one.help
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_docs_have_the_table():
    assert table() in (ROOT / "docs/operations.md").read_text()
