"""A run for people: the last lines of its log, and one static HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import jinja2
import numpy as np
from PIL import Image

from finepseudo import measures
from finepseudo.errors import FinePseudoError
from finepseudo.recipe import METHODS, described
from finepseudo.report.answers import bought
from finepseudo.report.drawing import COLOURS, axes_of, svg
from finepseudo.report.examples import Example, choose_examples
from finepseudo.report.trust import confusion_plot, reliability_plot
from finepseudo.results import STAGE_2, Interval, Results, RoundResult, Share
from finepseudo.run import REPORT, Run, training
from finepseudo.storage import artefacts

PAIRS = (
    ("pooled_cosine", "pooled cosine"),
    ("timestamp_cosine", "cosine per timestamp"),
    ("dtw", "soft-DTW, pre-trained f_A"),
    ("score", "alignability score, after L_AV"),
)
F_A = {"pretrained": "pre-trained", "aligned": "after L_AV"}
AUROC = {"knownness": "known-ness", "p_A": "p_A", "p_E": "p_E"}
KINDS = {"launch": "launching", "setup": "set-up", "wait": "waiting for clips", "transfer": "transfer"}
KINDS |= {"compute": "arithmetic", "commit": "commits"}
FUSED = {
    "product": "p_E and p_A multiplied, each weighed by what is estimated of it",
    "mean": "the mean of p_E and p_A",
}
CLEAR = 2.0  # standard errors from which a difference is called one
CONFUSED = 6  # pairs of classes that the page shows of each prediction
ROUNDS_PRINTED = 4  # more rounds than this are on the page only; the lines give the last one of each method

Seconds = Mapping[str, float]
T = TypeVar("T")


def summary(results: Results) -> str:
    """What was learned, each figure with its standard error, in some 25 lines of at most 100 columns."""
    parts = (_pair_lines(results), _round_lines(results), _method_lines(results), _time_lines(results))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def write_report(run: Run) -> str:
    """Write report.html into the run; its address.

    Raises ArtefactError: the run has no results.
    """
    results = run.results()
    # Videos, labels and the run that asked may have moved since; the figures are still there.
    examples, no_examples = _tried(lambda: [_drawn(example) for example in choose_examples(run, results)], [])
    answers, no_answers = _tried(lambda: bought(run), [])
    reliability, no_reliability = _tried(lambda: reliability_plot(run, results), "")
    confusion, no_confusion = _tried(lambda: confusion_plot(run, results), "")
    template = files("finepseudo.report").joinpath("page.html.jinja").read_text()
    strict = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    body = strict.from_string(template).render(
        results=results,
        headline=[
            _order_sentence(results),
            *_label_sentence(results),
            *_gain_sentences(results),
            *_prediction_sentence(results),
        ],
        methods=_method_rows(results),
        fused=FUSED[run.recipe().label.fusion],
        pairs=_pair_rows(results),
        frames=_frame_rows(results),
        curves=_learning_plot(run, results),
        rounds=[_round_row(one) for one in results.all_rounds()],
        quality=_quality_plot(results),
        reliability=reliability,
        no_reliability=no_reliability,
        open_world=_open_world_rows(results.all_rounds()),
        classes=_class_rows(run, results),
        confused=_confused_rows(results),
        confusion=confusion,
        no_confusion=no_confusion,
        kinds=[(kind, title, colour) for (kind, title), colour in zip(KINDS.items(), COLOURS, strict=True)],
        longest=max(map(_whole, _trainings(results)), default=0.0),
        examples=examples,
        no_examples=no_examples,
        answers=answers,
        no_answers=no_answers,
        recipe=json.dumps(described(run.recipe()), indent=1),
        summary=summary(results),
    )
    run.store.write(REPORT, body.encode())
    return run.store.uri(REPORT)


def _tried(make: Callable[[], T], nothing: T) -> tuple[T, str]:
    """What is made, and no reason; or nothing, and why."""
    try:
        return make(), ""
    except (FinePseudoError, FileNotFoundError) as error:
        return nothing, str(error)


def figure(share: Share | None, sign: str = "") -> str:
    """`.950 ±.009`; `-` for what is not known."""
    if share is None or not _known(share.value):
        return "-"
    se = f" ±{_short(share.se)}" if _known(share.se) else " ±?"
    return _short(share.value, sign) + se


def interval(found: Interval | None) -> str:
    """`.812 (.790 to .835)`."""
    return "not known" if found is None else f"{_short(found.value)} ({_short(found.low)} to {_short(found.high)})"


def gain(results: Results, part: str, other: str) -> Share | None:
    """Top-1 of finepseudo minus that of another method, paired."""
    return results.gains.get(f"{part}, over {other}")


def _known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _short(number: float | None, sign: str = "") -> str:
    """Three decimals without a leading zero, as shares are written."""
    if number is None or not math.isfinite(number):
        return "-"
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{round(number, 3) + 0.0:{sign}.3f}")


def _share(share: float, count: int) -> str:
    """A share of `count` videos."""
    return figure(Share(share, measures.proportion_standard_error(share, count))) if _known(share) else "-"


def _pair_rows(results: Results) -> list[dict[str, Any]]:
    """The four scores of the pair test in the order expected of them; nothing where it was not possible."""
    scores = results.pairs.scores
    if not all(key in scores and _known(scores[key].value) for key, _ in PAIRS):
        return []
    return [{"name": title, **vars(scores[key]), "text": figure(scores[key])} for key, title in PAIRS]


def _frame_rows(results: Results) -> list[dict[str, str]]:
    """What each f_A knows of the course of an action."""
    return [
        {
            "f_A": F_A.get(name, name),
            "Kendall's tau": interval(found.kendall_tau),
            "progression, R²": interval(found.progression),
            "phases right": interval(found.phase),
            "by chance": "not known" if found.phase_chance is None else _short(found.phase_chance),
        }
        for name, found in results.frames.items()
    ]


def _order_sentence(results: Results) -> str:
    if not (rows := _pair_rows(results)):
        why = "do not make pairs of both kinds" if results.pairs.videos else "with a label are missing"
        return f"pair test: not possible, the held-out videos {why}"
    names = [row["name"].partition(",")[0] for row in rows]
    broken = [f"{names[b]} <= {names[a]}" for a, b in ((0, 2), (1, 2), (2, 3)) if rows[b]["value"] <= rows[a]["value"]]
    verdict = f"does NOT hold: {'; '.join(broken)}" if broken else "holds"
    return f"expected order (the cosines < soft-DTW < score) {verdict}"


def _label_sentence(results: Results) -> list[str]:
    rounds = results.rounds.get("finepseudo")
    if not rounds:
        return []
    last = rounds[-1].quality
    text = f"finepseudo's last round gave {last.accepted} of {last.unlabelled} unlabelled videos a label"
    if last.known:
        of = f" (of the {last.known} whose truth is known)" if last.known < last.unlabelled else ""
        return [f"{text}; the share of right ones is {figure(last.precision_accepted['p'])}{of}"]
    fusion = rounds[-1].fusion
    estimates = f"p_A {_short(fusion.accuracy_A)}, p_E {_short(fusion.accuracy_E)}, p {_short(fusion.accuracy)}"
    known = "" if fusion.accuracy is None else f" (accuracies estimated without their truth: {estimates})"
    return [f"{text}; the share of right ones is not known{known}"]


def _prediction_sentence(results: Results) -> list[str]:
    method, part = results.prediction.split("/")
    return [f"the run stands by the {part} prediction of {method}"] if method in results.measured else []


def _gain_sentences(results: Results) -> list[str]:
    sentences: list[str] = []
    for part in ("f_E", "fused"):
        share = gain(results, part, "supervised")
        if share is None or share.se is None:
            continue
        clear = abs(share.value) > CLEAR * share.se
        words = ("better than" if share.value > 0 else "WORSE than") if clear else "not told apart from"
        sentences.append(f"finepseudo's {part} is {words} supervised of equal steps: {figure(share, '+')}")
    return sentences


def _pair_lines(results: Results) -> list[str]:
    order = _order_sentence(results)
    if not (rows := _pair_rows(results)):
        return [order]
    count = results.pairs.pairs
    lines = [f"Are two held-out clips the same action? average precision over {count} pairs, chance .5"]
    lines += [f"  {row['name']:<34}{row['text']}" for row in rows]
    return lines + textwrap.wrap(order, 98, initial_indent="  ", subsequent_indent="    ")


def _round_row(one: RoundResult) -> dict[str, Any]:
    """One round's figures, written out, for lines and page."""
    quality, count = one.quality, one.quality.unlabelled
    method, _, number = one.name.partition("/round-")
    return {
        "name": f"{method}, round {number}",
        "unlabelled": count,
        "accepted": quality.accepted,
        "coverage": _share(quality.coverage, count),
        "agreement": _share(quality.agreement, count),
        "all": [figure(quality.precision_all[key]) for key in ("p_E", "p_A", "p")],
        "kept": [figure(quality.precision_accepted[key]) for key in ("p_E", "p_A", "p")],
        "calibration_error": _short(quality.calibration_error),
    }


def _open_world_rows(rounds: Sequence[RoundResult]) -> list[dict[str, str]]:
    """How each round tells novel videos, where there are any."""
    return [
        {
            "": _round_row(one)["name"],
            "novel": f"{found.novel} of {one.quality.known}",
            **{f"AUROC, {title}": figure(found.auroc[key]) for key, title in AUROC.items()},
            "contamination": figure(found.contamination),
            "known ones accepted": _share(found.coverage_known, one.quality.known - found.novel),
        }
        for one in rounds
        if (found := one.quality.open_world)
    ]


def _round_lines(results: Results) -> list[str]:
    rounds = results.all_rounds()
    if len(rounds) > ROUNDS_PRINTED:
        rounds = [every[-1] for every in results.rounds.values() if every]
    lines = [f"{'Precision of pseudo-labels':<63}{'p_E':<13}{'p_A':<13}p"] if rounds else []
    for row in map(_round_row, rounds):
        for name, kind, share, figures in (
            (row["name"], f"all {row['unlabelled']}", f"agreement {row['agreement']}", row["all"]),
            ("", f"accepted {row['accepted']}", f"coverage  {row['coverage']}", row["kept"]),
        ):
            lines.append(f"  {name:<23}{kind:<14} {share:<23}" + "".join(f"{text:<13}" for text in figures).rstrip())
    for row in _open_world_rows(rounds):
        score = f"AUROC of known-ness {row['AUROC, known-ness']}"
        lines.append(f"  {row['']:<23}novel {row['novel']}; {score}; contamination {row['contamination']}")
    if not all(one.quality.known for one in rounds):
        for sentence in _label_sentence(results):
            lines += textwrap.wrap(sentence, 98, initial_indent="  ", subsequent_indent="    ")
    return [*lines, "  (earlier rounds are on the page)"] if len(rounds) < len(results.all_rounds()) else lines


def _method_rows(results: Results) -> list[dict[str, str]]:
    """One row a method, written out, for lines and page; top-5 of five classes says nothing."""
    rows: list[dict[str, str]] = []
    for name in (STAGE_2, *METHODS):
        if name not in results.measured:
            continue
        measured = results.measured[name]
        f_E = measured.f_E
        rows.append(
            {
                "name": "after stage 2" if name == STAGE_2 else name,
                "f_E": figure(f_E.top1),
                "fused": figure(measured.fused and measured.fused.top1),
                "p_A": figure(measured.p_A and measured.p_A.top1),
                "top5": figure(f_E.top5) if len(results.classes) > 5 else "-",
                "mean_class": figure(f_E.mean_class),
                "calibration_error": _short(f_E.calibration_error),
                "gain_f_E": figure(gain(results, "f_E", name), "+"),
                "gain_fused": figure(gain(results, "fused", name), "+"),
            }
        )
    return rows


def _method_lines(results: Results) -> list[str]:
    rows = _method_rows(results)
    if not rows:
        return []
    count = next(iter(results.measured.values())).f_E.videos
    gains = any(row[key] != "-" for row in rows for key in ("gain_f_E", "gain_fused"))
    keys = ("f_E", "fused", "top5", "mean_class", *(("gain_f_E", "gain_fused") if gains else ()))
    titles = ("f_E", "fused", "f_E top-5", "f_E by class", "f_E", "fused")
    head = f"Top-1 on {count} test videos (± is over these), with {results.split.labelled} labelled clips"
    lines = [f"{head:<70} finepseudo gains" if gains else head]
    lines.append(f"  {'':<15}" + "".join(f"{title:<14}" for title in titles[: len(keys)]))
    lines += [f"  {row['name']:<15}" + "".join(f"{row[key]:<14}" for key in keys) for row in rows]
    return [line.rstrip() for line in lines] + [f"  {sentence}" for sentence in _gain_sentences(results)]


def _trainings(results: Results) -> list[Seconds]:
    return [seconds for seconds in results.timing.values() if "compute" in seconds]


def _whole(seconds: Seconds) -> float:
    return sum(seconds.get(kind, 0.0) for kind in KINDS)


def _time_lines(results: Results) -> list[str]:
    lines, trainings = list[str](), _trainings(results)
    # The first labels of several methods come from one pass, which each of them reports.
    passes = {json.dumps(seconds): seconds for seconds in results.timing.values() if "predict" in seconds}
    if trainings:
        sums = {kind: sum(seconds.get(kind, 0.0) for seconds in trainings) for kind in (*KINDS, "decode")}
        whole = _whole(sums) or 1.0
        shares = [f"{title} {sums[kind]:.0f} s ({sums[kind] / whole:.0%})" for kind, title in KINDS.items()]
        lines += [
            "Where the time of the trainings went (two run at a time: this adds up to more than the clock)",
            f"  {', '.join(shares[:4])},",
            f"  {', '.join(shares[4:])}; decoding, in other processes: {sums['decode']:.0f} s",
        ]
    if passes:
        sums = {
            kind: sum(seconds.get(kind, 0.0) for seconds in passes.values()) for kind in ("start", "decode", "predict")
        }
        pool = f"start {sums['start']:.0f} s, decoding {sums['decode']:.0f} s, arithmetic {sums['predict']:.0f} s"
        lines.append(f"  the pool's {len(passes)} passes over videos: {pool}")
    return lines


def _learning_plot(run: Run, results: Results) -> str:
    names = [folder.removeprefix(training("")) for folder in results.timing if folder.startswith(training(""))]
    curves = {name: curve for name in names if (curve := run.curve(name))}
    if not curves:
        return ""
    drawn, axes = axes_of(10, 1.8 * -(-len(curves) // 3), len(curves), 3)
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        steps, loss = (np.array([point[key] for point in curve]) for key in ("step", "loss"))
        width = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axis.plot(steps, loss, color="#c9d3de", linewidth=0.6)
        axis.plot(steps[width - 1 :], smooth, color=COLOURS[0], linewidth=1.3)
        axis.set_title(name, fontsize=8)
        axis.set_ylim(min(0.0, float(loss.min())), float(np.quantile(loss, 0.99)) * 1.1 or None)
    return svg(drawn)


def _quality_plot(results: Results) -> str:
    rounds = [one for one in results.all_rounds() if one.quality.curves]
    if not rounds:
        return ""
    drawn, axes = axes_of(10, 2.6 * -(-len(rounds) // 3), max(3, len(rounds)), 3)
    for axis in axes[len(rounds) :]:
        axis.set_visible(False)
    for axis, one in zip(axes, rounds, strict=False):
        for name, colour, width in zip(("p", "p_E", "p_A"), ("#bbd3ba", *COLOURS), (5, 1.3, 1.3), strict=False):
            curve = one.quality.curves[name]  # p lies below, and wide: some methods have p = p_E or p = p_A
            axis.plot(curve.coverage, curve.precision, label=name, color=colour, linewidth=width)
        axis.axvline(one.quality.coverage, color="#888888", linestyle=":", linewidth=1)
        axis.set_title(one.name, fontsize=8, parse_math=False)
        axis.set_xlabel("coverage (dotted: accepted)", fontsize=7)
        axis.set_ylabel("precision", fontsize=7)
        axis.legend(fontsize=7, frameon=False)
    return svg(drawn)


def _class_rows(run: Run, results: Results) -> list[dict[str, Any]]:
    """One row a class: accuracy by method, and what became of its pseudo-labels in finepseudo's last round."""
    shown = (("supervised", "f_E"), ("finepseudo", "f_E"), ("finepseudo", "fused"))
    columns = {
        f"{name} {part}": getattr(results.measured[name], part).per_class
        for name, part in shown
        if name in results.measured
    }
    folder, _, name = results.predictions.rpartition("/")
    truth_N = artefacts.read_table(run.store, folder, name).column("truth").to_numpy()
    count_K = measures.class_counts(truth_N, len(results.classes)).tolist()
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(results.classes):
        row: dict[str, Any] = {"class": name, "test videos": count_K[index]}
        row |= {title: _short(values[index]) for title, values in columns.items()}
        if rounds := results.rounds.get("finepseudo"):
            last = rounds[-1].quality
            known, right = last.known_per_class[index], last.right_per_class[index]
            row |= {"accepted as it": last.accepted_per_class[index]}
            row |= {"of these right": _short(right / known if known else None)}
        rows.append(row)
    return rows


def _confused_rows(results: Results) -> list[dict[str, Any]]:
    """The pairs of classes that finepseudo, or else the last method measured, takes for each other most often."""
    if not results.measured:
        return []
    name = "finepseudo" if "finepseudo" in results.measured else list(results.measured)[-1]
    return [
        {
            "prediction": f"{name} {part}",
            "true class": results.classes[one.truth],
            "taken for": results.classes[one.label],
            "videos": one.videos,
            "share": _short(one.share),
        }
        for part in ("f_E", "fused")
        if (found := getattr(results.measured[name], part)) is not None
        for one in found.confused[:CONFUSED]
    ]


def _drawn(example: Example) -> dict[str, Any]:
    """An example with its two rows of frames as one picture."""
    rows = [np.concatenate(list(frames), axis=1) for frames in (example.frames_THWC, example.aligned_THWC)]
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(sink, format="JPEG", quality=80)
    picture = "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
    return {**vars(example), "picture": picture}
