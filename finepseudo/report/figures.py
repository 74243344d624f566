"""What a run found out, as rows and sentences that the last lines of a log and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finepseudo.recipe import METHODS
from finepseudo.report.words import figure, interval, is_known, shared, short
from finepseudo.results import STAGE_2, Results, RoundResult, Share

PAIRS = (
    ("pooled_cosine", "pooled cosine"),
    ("timestamp_cosine", "cosine per timestamp"),
    ("dtw", "soft-DTW, pre-trained f_A"),
    ("score", "alignability score, after L_AV"),
)
F_A = {"pretrained": "pre-trained", "aligned": "after L_AV"}
AUROC = {"knownness": "known-ness", "p_A": "p_A", "p_E": "p_E"}
CLEAR = 2.0  # standard errors from which a difference is called one


def gain(results: Results, part: str, other: str) -> Share | None:
    """Top-1 of finepseudo minus that of another method, paired."""
    return results.gains.get(f"{part}, over {other}")


def pair_rows(results: Results) -> list[dict[str, Any]]:
    """The four scores of the pair test in the order expected of them; nothing where it was not possible."""
    scores = results.pairs.scores
    if not all(key in scores and is_known(scores[key].value) for key, _ in PAIRS):
        return []
    return [{"name": title, **vars(scores[key]), "text": figure(scores[key])} for key, title in PAIRS]


def frame_rows(results: Results) -> list[dict[str, str]]:
    """What each f_A knows of the course of an action."""
    return [
        {
            "f_A": F_A.get(name, name),
            "Kendall's tau": interval(found.kendall_tau),
            "progression, R²": interval(found.progression),
            "phases right": interval(found.phase),
            "by chance": "not known" if found.phase_chance is None else short(found.phase_chance),
        }
        for name, found in results.frames.items()
    ]


def order_sentence(results: Results) -> str:
    if not (rows := pair_rows(results)):
        why = "do not make pairs of both kinds" if results.pairs.videos else "with a label are missing"
        return f"pair test: not possible, the held-out videos {why}"
    names = [row["name"].partition(",")[0] for row in rows]
    broken = [f"{names[b]} <= {names[a]}" for a, b in ((0, 2), (1, 2), (2, 3)) if rows[b]["value"] <= rows[a]["value"]]
    verdict = f"does NOT hold: {'; '.join(broken)}" if broken else "holds"
    return f"expected order (the cosines < soft-DTW < score) {verdict}"


def label_sentence(results: Results) -> list[str]:
    rounds = results.rounds.get("finepseudo")
    if not rounds:
        return []
    last = rounds[-1].quality
    text = f"finepseudo's last round gave {last.accepted} of {last.unlabelled} unlabelled videos a label"
    if last.known:
        of = f" (of the {last.known} whose truth is known)" if last.known < last.unlabelled else ""
        return [f"{text}; the share of right ones is {figure(last.precision_accepted['p'])}{of}"]
    fusion = rounds[-1].fusion
    estimates = f"p_A {short(fusion.accuracy_A)}, p_E {short(fusion.accuracy_E)}, p {short(fusion.accuracy)}"
    estimated = "" if fusion.accuracy is None else f" (accuracies estimated without their truth: {estimates})"
    return [f"{text}; the share of right ones is not known{estimated}"]


def gain_sentences(results: Results) -> list[str]:
    sentences: list[str] = []
    for part in ("f_E", "fused"):
        share = gain(results, part, "supervised")
        if share is None or share.se is None:
            continue
        clear = abs(share.value) > CLEAR * share.se
        words = ("better than" if share.value > 0 else "WORSE than") if clear else "not told apart from"
        sentences.append(f"finepseudo's {part} is {words} supervised of equal steps: {figure(share, '+')}")
    return sentences


def prediction_sentence(results: Results) -> list[str]:
    method, part = results.prediction.split("/")
    return [f"the run stands by the {part} prediction of {method}"] if method in results.measured else []


def round_row(one: RoundResult) -> dict[str, Any]:
    """One round's figures, written out, for lines and page."""
    quality, count = one.quality, one.quality.unlabelled
    method, _, number = one.name.partition("/round-")
    return {
        "name": f"{method}, round {number}",
        "unlabelled": count,
        "accepted": quality.accepted,
        "coverage": shared(quality.coverage, count),
        "agreement": shared(quality.agreement, count),
        "all": [figure(quality.precision_all[key]) for key in ("p_E", "p_A", "p")],
        "kept": [figure(quality.precision_accepted[key]) for key in ("p_E", "p_A", "p")],
        "calibration_error": short(quality.calibration_error),
    }


def open_world_rows(rounds: Sequence[RoundResult]) -> list[dict[str, str]]:
    """How each round tells novel videos, where there are any."""
    return [
        {
            "": round_row(one)["name"],
            "novel": f"{found.novel} of {one.quality.known}",
            **{f"AUROC, {title}": figure(found.auroc[key]) for key, title in AUROC.items()},
            "contamination": figure(found.contamination),
            "known ones accepted": shared(found.coverage_known, one.quality.known - found.novel),
        }
        for one in rounds
        if (found := one.quality.open_world)
    ]


def method_rows(results: Results) -> list[dict[str, str]]:
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
                "calibration_error": short(f_E.calibration_error),
                "gain_f_E": figure(gain(results, "f_E", name), "+"),
                "gain_fused": figure(gain(results, "fused", name), "+"),
            }
        )
    return rows
