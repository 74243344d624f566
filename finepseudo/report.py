"""A run for people: the last lines of its log, and one static HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from finepseudo import artefacts
from finepseudo.examples import Example, choose_examples
from finepseudo.storage import Store
from finepseudo.train.checkpoint import read_history

METHODS = ("supervised", "supervised_2x", "pseudo_video", "pseudo_align", "finepseudo")
PAIRS = (
    ("pooled_cosine", "pooled cosine"),
    ("timestamp_cosine", "cosine per timestamp"),
    ("dtw", "soft-DTW, pre-trained f_A"),
    ("score", "alignability score, after L_AV"),
)
KINDS = ("launch", "setup", "wait", "transfer", "compute", "commit")
COLOURS = ("#4c6e91", "#c8743a", "#5b8c5a", "#a05195", "#8a8a8a", "#c9a227")


def summary(results: Mapping[str, Any]) -> str:
    """What was learned, each figure with its standard error, in at most some thirty lines of text."""
    return "\n".join(
        [*_pair_lines(results), "", *_round_lines(results), *_method_lines(results), *_time_lines(results)]
    )


def write_report(run: Store, results: Mapping[str, Any], base: Store | None = None) -> str:
    """Write report.html into the run; its address.

    Args:
        run: the run directory.
        results: what results.json holds.
        base: the run directory that holds data and pre-training, where it is another one.
    """
    template = files("finepseudo").joinpath("report.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    body = page.render(
        results=results,
        methods=[name for name in ("stage_2", *METHODS) if name in results],
        pairs=_pair_plot(results),
        curves=_learning_plot(run, base or run, results),
        rounds=[round_ for rounds in results["rounds"].values() for round_ in rounds],
        quality=_quality_plot(results),
        classes=_class_rows(results),
        timing=_timing_plot(results),
        examples=[_drawn(example) for example in choose_examples(run, base or run, results)],
        recipe=json.dumps(json.loads(run.read(artefacts.RECIPE))["recipe"], indent=1),
        summary=summary(results),
    )
    run.write("report.html", body.encode())
    return run.uri("report.html")


def figure(value: Mapping[str, Any] | None, sign: str = "") -> str:
    """`.950 +- .009`."""
    if value is None:
        return "-"
    se = "" if value.get("se") is None else f" ±{value['se']:.3f}"
    return f"{value['value']:{sign}.3f}{se}"


def _pair_lines(results: Mapping[str, Any]) -> list[str]:
    pairs = results["pairs"]
    if "score" not in pairs:
        return ["pair test: not possible, the held-out videos do not make pairs of both kinds"]
    values = [pairs[key]["value"] for key, _ in PAIRS]
    held = max(values[:2]) < values[2] < values[3]
    lines = [f"Are two held-out clips the same action? average precision over {pairs['pairs']} pairs, chance .5"]
    lines += [f"  {name:<34}{figure(pairs[key])}" for key, name in PAIRS]
    return [*lines, f"  expected order (the cosines < soft-DTW < score): {'holds' if held else 'does NOT hold'}"]


def _round_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for method, rounds in results["rounds"].items():
        for number, found in enumerate(rounds, 1):
            every, kept = found["precision_all"], found["precision_accepted"]
            lines += [
                f"Pseudo-labels of {method}, round {number}: {found['accepted']} of {found['unlabelled']} accepted "
                f"(coverage {found['coverage']:.3f}), agreement of p_E and p_A {found['agreement']:.3f}",
                f"  {'precision':<12}{'p_E':<16}{'p_A':<16}p",
                f"  {'all':<12}{figure(every['p_E']):<16}{figure(every['p_A']):<16}{figure(every['p'])}",
                f"  {'accepted':<12}{figure(kept['p_E']):<16}{figure(kept['p_A']):<16}{figure(kept['p'])}",
                "",
            ]
    return lines


def _method_lines(results: Mapping[str, Any]) -> list[str]:
    names = [name for name in ("stage_2", *METHODS) if name in results]
    count = results[names[0]]["f_E"]["videos"]
    lines = [
        f"Top-1 on {count} test videos, with {results['split']['labelled']} labelled clips",
        f"  {'':<24}{'f_E':<16}{'fused with p_A':<18}{'top-5':<9}mean class (f_E)",
    ]
    for name in names:
        f_E, fused = results[name]["f_E"], results[name]["fused"]
        title = {"stage_2": "after stage 2", "supervised": "supervised, equal steps"}.get(name, name)
        top1 = [figure({"value": part["top1"], "se": part["top1_se"]}) for part in (f_E, fused)]
        lines.append(f"  {title:<24}{top1[0]:<16}{top1[1]:<18}{f_E['top5']:<9.3f}{f_E['mean_class']:.3f}")
    gains = results["gains"].items()
    return [*lines, *[f"  finepseudo's gain in {name}: {figure(gain, '+')}" for name, gain in gains], ""]


def _time_lines(results: Mapping[str, Any]) -> list[str]:
    trainings = [seconds for seconds in results["timing"].values() if "compute" in seconds]
    passes = [seconds for seconds in results["timing"].values() if "predict" in seconds]
    sums = {kind: sum(seconds.get(kind, 0.0) for seconds in trainings) for kind in (*KINDS, "decode")}
    whole = sum(sums[kind] for kind in KINDS) or 1.0
    shares = ", ".join(f"{kind} {sums[kind]:.0f} s ({sums[kind] / whole:.0%})" for kind in KINDS)
    pool = ", ".join(f"{kind} {sum(p[kind] for p in passes):.0f} s" for kind in ("start", "decode", "predict"))
    return [
        "Where the time of the trainings went (they run two at a time, so this adds up to more than the clock)",
        f"  {shares}",
        f"  decoding, in its own processes: {sums['decode']:.0f} s; the pool's {len(passes)} passes: {pool}",
    ]


def _svg(drawn: Figure) -> str:
    sink = io.StringIO()
    drawn.savefig(sink, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float, height: float, count: int = 1, columns: int = 1) -> tuple[Figure, Sequence[Any]]:
    drawn = Figure(figsize=(width, height))
    rows = -(-count // columns)
    axes = [drawn.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    drawn.subplots_adjust(hspace=0.7, wspace=0.3)
    return drawn, axes


def _pair_plot(results: Mapping[str, Any]) -> str:
    pairs = results["pairs"]
    if "score" not in pairs:
        return ""
    drawn, (axis,) = _axes(6, 1.8)
    values = [pairs[key]["value"] for key, _ in PAIRS]
    errors = [pairs[key]["se"] or 0.0 for key, _ in PAIRS]
    axis.barh([name for _, name in PAIRS], values, xerr=errors, color=COLOURS[0], height=0.6)
    axis.invert_yaxis()
    axis.set_xlim(0.4, 1.0)
    axis.set_xlabel("average precision (chance .5)", fontsize=8)
    return _svg(drawn)


def _learning_plot(run: Store, base: Store, results: Mapping[str, Any]) -> str:
    names = [name for name in results["timing"] if name.startswith("train/")]
    drawn, axes = _axes(10, 1.7 * -(-len(names) // 3), len(names), 3)
    for axis, name in zip(axes, names, strict=True):
        store = run if run.list(f"{name}/history") else base
        curve = read_history(store, name)[1]
        steps, loss = (np.array([point[key] for point in curve]) for key in ("step", "loss"))
        width = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axis.plot(steps, loss, color="#c9d3de", linewidth=0.6)
        axis.plot(steps[width - 1 :], smooth, color=COLOURS[0], linewidth=1.3)
        axis.set_title(name.removeprefix("train/"), fontsize=8)
    return _svg(drawn) if names else ""


def _quality_plot(results: Mapping[str, Any]) -> str:
    rounds = [(method, found) for method, every in results["rounds"].items() for found in every]
    if not rounds:
        return ""
    drawn, axes = _axes(10, 2.6 * -(-len(rounds) // 3), len(rounds), 3)
    for axis, (_, found) in zip(axes, rounds, strict=True):
        for name, colour in zip(("p_E", "p_A", "p"), COLOURS, strict=False):
            curve = found["curves"][name]
            axis.plot(curve["coverage"], curve["precision"], label=name, color=colour, linewidth=1.3)
        axis.axvline(found["coverage"], color="#bbbbbb", linestyle=":")
        axis.set_title(found["name"], fontsize=8)
        axis.set_xlabel("coverage (dotted: accepted)", fontsize=7)
        axis.set_ylabel("precision", fontsize=7)
        axis.legend(fontsize=7, frameon=False)
    return _svg(drawn)


def _timing_plot(results: Mapping[str, Any]) -> str:
    trainings = {name: seconds for name, seconds in results["timing"].items() if "compute" in seconds}
    drawn, (axis,) = _axes(8, 0.35 * len(trainings) + 0.8)
    left = np.zeros(len(trainings))
    names = [name.removeprefix("train/") for name in trainings]
    for kind, colour in zip(KINDS, COLOURS[1:] + COLOURS[:1], strict=True):
        values = np.array([seconds.get(kind, 0.0) for seconds in trainings.values()])
        axis.barh(names, values, left=left, label=kind, color=colour, height=0.6)
        left += values
    axis.invert_yaxis()
    axis.set_xlabel("seconds", fontsize=8)
    axis.legend(fontsize=7, frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(drawn)


def _class_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a class: accuracy by method, and what became of its pseudo-labels in finepseudo's last round."""
    last = (results["rounds"].get("finepseudo") or [None])[-1]
    columns = [
        (f"{name} {part}", results[name][part]["per_class"])
        for name, part in (("supervised", "f_E"), ("finepseudo", "f_E"), ("finepseudo", "fused"))
        if name in results
    ]
    rows = []
    for index, name in enumerate(results["classes"]):
        row: dict[str, Any] = {"class": name} | {title: values[index] for title, values in columns}
        if last:
            accepted, right = last["accepted_per_class"][index], last["right_per_class"][index]
            row |= {"accepted": accepted, "precision of accepted": right / accepted if accepted else None}
        rows.append(row)
    return rows


def _drawn(example: Example) -> dict[str, Any]:
    """An example with its two rows of frames as one picture."""
    rows = [np.concatenate(list(frames), axis=1) for frames in (example.frames_THWC, example.aligned_THWC)]
    return {**vars(example), "picture": _jpeg(np.concatenate(rows, axis=0))}


def _jpeg(pixels_HWC: np.ndarray) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels_HWC).save(sink, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
