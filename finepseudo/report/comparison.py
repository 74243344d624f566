"""Runs side by side: means and errors over label seeds, differences seed by seed, ablations, budgets of labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter

from finepseudo.errors import TrainingError
from finepseudo.recipe import METHODS, Method
from finepseudo.recipes.variants import METHOD_ABLATIONS, Variant
from finepseudo.report.figures import F_A, PAIRS
from finepseudo.report.words import figure
from finepseudo.results import STAGE_2, FrameQuality, OpenWorld, Results, Share

PARTS = ("f_E", "fused", "p_A")
FRAMES = {"kendall_tau": "Kendall's tau", "progression": "progression, R²", "phase": "phases right"}
NOVELTY = {
    "auroc_knownness": "AUROC, known-ness",
    "auroc_p_A": "AUROC, p_A",
    "auroc_p_E": "AUROC, p_E",
    "contamination": "contamination",
    "coverage_known": "known ones accepted",
}
NO_TEST = "no test video has a label: there is nothing to compare by"
OURS: Method = "finepseudo"
AGAINST = (
    *((OURS, "f_E", method, "f_E") for method, traits in METHODS.items() if traits.baseline),
    (OURS, "fused", "pseudo_align", "fused"),
)
"""Pairs of figures whose difference is taken seed by seed."""


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds."""

    mean: float
    se: float | None  # standard error of the mean; None for one seed
    by_seed: list[float]


@dataclass(frozen=True)
class Comparison:
    """Several runs that differ in the seed of their labels."""

    seeds: list[int]
    labelled: list[int]  # clips with a label, by seed
    top1: dict[str, dict[str, Spread]]
    """By method, and of those of f_E, fused and p_A that it has."""
    differences: dict[str, Spread]
    pairs: dict[str, Spread]
    """Average precision of the pair test, by its score; those that every seed has."""
    frames: dict[str, dict[str, Spread]]
    """Measures of alignment (`FRAMES`) by f_A; those that every seed has."""

    def table(self) -> str:
        """What a comparison prints."""
        head = "  ".join(f"seed {seed:<3}" for seed in self.seeds)
        lines = ["top-1 on the test videos", f"{'':42}{head}  mean   s.e."]
        for name, parts in self.top1.items():
            lines += [_line(f"{name}, {part}", figures) for part, figures in parts.items()]
        lines += ["", "differences, seed by seed"]
        lines += [_line(name, figures, sign="+") for name, figures in self.differences.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Ablation:
    """finepseudo without a piece of it; over the seeds that it and the whole have in common."""

    top1: dict[str, Spread]  # of f_E, fused and p_A
    gain: dict[str, Spread]  # over the whole, seed by seed: below 0 where the piece helps


@dataclass(frozen=True)
class World:
    """finepseudo where some classes have no label; top-1 is over test videos of the others."""

    top1: dict[str, Spread]  # of f_E, fused and p_A
    gain: dict[str, Spread]  # over the closed world, seed by seed; empty without one
    novelty: dict[str, Spread]
    """Of the last round, where D_u has novel videos: `NOVELTY`."""


@dataclass(frozen=True)
class Tables:
    """Everything that a comparison found out."""

    whole: Comparison
    ablations: dict[str, Ablation] = field(default_factory=dict[str, Ablation])
    budgets: dict[float, Comparison] = field(default_factory=dict[float, Comparison])
    """By the share of labelled videos, ascending."""
    worlds: dict[str, World] = field(default_factory=dict[str, World])
    """By what becomes of the clips of novel classes: open, open_unfiltered, closed."""
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Why a run has no results, by its folder."""

    def to_json(self) -> bytes:
        """For compare.json."""
        body = asdict(self)
        return json.dumps({**body.pop("whole"), **body}, indent=1).encode()

    def markdown(self, curve: str = "") -> str:
        """For compare.md; `curve` is the address of the plot of the budgets."""
        lines = ["# Top-1 on the test videos", "", _seeds(self.whole), ""]
        lines += _table(["", *PARTS], _method_rows(self.whole))
        lines += ["", "## finepseudo against each baseline, seed by seed", ""]
        lines += _table(["", "difference"], [[name, _text(of, "+")] for name, of in self.whole.differences.items()])
        if self.whole.pairs:
            lines += ["", "## Pair test: average precision, chance .5", ""]
            titles = dict(PAIRS)
            lines += _table(["", "AP"], [[titles[name], _text(of)] for name, of in self.whole.pairs.items()])
        if self.whole.frames:
            lines += ["", "## Frames of the pair test's videos", ""]
            rows = [[F_A[name], *(_text(of.get(key)) for key in FRAMES)] for name, of in self.whole.frames.items()]
            lines += _table(["f_A", *FRAMES.values()], rows)
        if self.ablations:
            lines += ["", "## Ablations of finepseudo", "", "Gains are over the whole, seed by seed.", ""]
            lines += _table(["", "seeds", "f_E", "fused", "f_E gains", "fused gains"], self._ablation_rows())
        if self.budgets:
            lines += ["", "## Budgets of labels", "", *([f"![top-1 by share of labels]({curve})", ""] if curve else [])]
            lines += self._budget_tables()
        if self.worlds:
            lines += ["", "## Open world: finepseudo where some classes have no label", ""]
            lines += [
                "Top-1 is over test videos of the other classes; gains are over the closed world, seed by seed.",
                "",
            ]
            lines += _table(["", "f_E", "fused", "f_E gains", "fused gains", *NOVELTY.values()], self._world_rows())
        if self.failed:
            lines += ["", "## Runs without results", "", "A variant that fails is worse than the seeds it has say.", ""]
            lines += _table(["run", "why"], [[name, why] for name, why in self.failed.items()])
        return "\n".join(lines) + "\n"

    def _ablation_rows(self) -> list[list[str]]:
        whole = self.whole.top1.get(OURS)
        rows = (
            [["all", str(len(self.whole.seeds)), _text(whole["f_E"]), _text(whole["fused"]), "", ""]] if whole else []
        )
        for name, found in self.ablations.items():
            parts = [_text(found.top1[part]) for part in ("f_E", "fused")]
            gains = [_text(found.gain[part], "+") for part in ("f_E", "fused")]
            rows.append([name.replace("no_", "no "), str(len(found.top1["f_E"].by_seed)), *parts, *gains])
        return rows

    def _world_rows(self) -> list[list[str]]:
        return [
            [
                name.replace("_", ", "),
                *(_text(found.top1[part]) for part in ("f_E", "fused")),
                *(_text(found.gain.get(part), "+") for part in ("f_E", "fused")),
                *(_text(found.novelty.get(key)) for key in NOVELTY),
            ]
            for name, found in self.worlds.items()
        ]

    def _budget_tables(self) -> list[str]:
        head = ["", *(f"{100 * budget:g} %" for budget in self.budgets)]
        counts = [
            ["labelled clips", *("/".join(map(str, sorted({*of.labelled}))) for of in self.budgets.values())],
            ["seeds", *(str(len(of.seeds)) for of in self.budgets.values())],
        ]
        lines: list[str] = []
        for title, names, read in (
            ("top-1, f_E", METHODS, lambda of, name: of.top1.get(name, {}).get("f_E")),
            ("top-1, fused", METHODS, lambda of, name: of.top1.get(name, {}).get("fused")),
            ("difference", _names(self.budgets.values()), lambda of, name: of.differences.get(name)),
        ):
            sign = "+" if title == "difference" else ""
            cells = [[name, *(_text(read(of, name), sign) for of in self.budgets.values())] for name in names]
            lines += [f"**{title}**", "", *_table(head, [*counts, *cells]), ""]
        return lines[:-1]


def compare(results: Mapping[int, Results]) -> Comparison:
    """Top-1 of every method by seed, with mean and standard error over seeds, and paired differences."""
    seeds = sorted(results)
    top1 = {
        name: {
            part: spread([_top1(results[seed], name, part) for seed in seeds])
            for part in PARTS
            if getattr(of, part) is not None
        }
        for name, of in results[seeds[0]].measured.items()
    }
    differences: dict[str, Spread] = {}
    for name, part, other, other_part in AGAINST:
        if name in top1 and other in top1:
            differences[f"{name} {part} - {other} {other_part}"] = paired(top1[name][part], top1[other][other_part])
    scores = [results[seed].pairs.scores for seed in seeds]
    pairs = {name: spread([of[name].value for of in scores]) for name, _ in PAIRS if all(name in of for of in scores)}
    labelled = [results[seed].split.labelled for seed in seeds]
    return Comparison(seeds, labelled, top1, differences, pairs, _frames([results[seed].frames for seed in seeds]))


def tables(found: Sequence[tuple[Variant, Results | Exception]], *, own: float) -> Tables:
    """The tables of a comparison's runs.

    Args:
        found: what each run gave, in any order.
        own: the recipe's budget; its run with every method is on the curve, if there is a curve.
    Raises TrainingError: no run with every method has figures.
    """
    done = [(one, results) for one, results in found if isinstance(results, Results) and results.measured]
    failed = {one.folder: str(error) for one, error in found if not isinstance(error, Results)}
    failed |= {one.folder: NO_TEST for one, of in found if isinstance(of, Results) and not of.measured}
    whole = {one.seed: results for one, results in done if not one.ablation and one.budget is None and not one.world}
    if not whole:
        raise TrainingError("; ".join(f"{folder}: {why}" for folder, why in failed.items()))
    ablations: dict[str, Ablation] = {}
    for name in dict.fromkeys(one.ablation for one, _ in done if one.ablation):
        theirs = {one.seed: results for one, results in done if one.ablation == name}
        if theirs.keys() & whole.keys():
            ablations[name] = _ablation(theirs, whole, OURS)
    if ablations:
        ablations |= {name: _ablation(whole, whole, method) for name, method in METHOD_ABLATIONS.items()}
    worlds = {
        world: dict(sorted(((one.seed, results) for one, results in done if one.world == world), key=itemgetter(0)))
        for world in dict.fromkeys(one.world for one, _ in done if one.world)
    }
    budgets = {budget: {} for budget in sorted({one.budget for one, _ in done if one.budget is not None})}
    for one, results in done:
        if one.budget is not None:
            budgets[one.budget][one.seed] = results
    if budgets and own:
        budgets[own] = whole
    return Tables(
        whole=compare(whole),
        ablations=ablations,
        budgets={budget: compare(budgets[budget]) for budget in sorted(budgets)},
        worlds=_worlds(worlds),
        failed=failed,
    )


def _worlds(runs: Mapping[str, Mapping[int, Results]]) -> dict[str, World]:
    found, closed = dict[str, World](), runs.get("closed", {})
    for world, of_world in runs.items():
        compared = world != "closed" and of_world.keys() & closed.keys()
        last = [results.rounds[OURS][-1].quality.open_world for results in of_world.values()]
        told = [_novelty(one) for one in last if one]
        found[world] = World(
            top1={part: spread([_top1(results, OURS, part) for results in of_world.values()]) for part in PARTS},
            gain=_ablation(of_world, closed, OURS).gain if compared else {},
            novelty={
                key: spread([of[key] for of in told]) for key in NOVELTY if told and all(key in of for of in told)
            },
        )
    return found


def _novelty(found: OpenWorld) -> dict[str, float]:
    told = {f"auroc_{name}": of.value for name, of in found.auroc.items()}
    told |= {"contamination": found.contamination.value} if found.contamination else {}
    return told | {"coverage_known": found.coverage_known}


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard error of the mean, and the values."""
    mean = sum(values) / len(values)
    se = None
    if len(values) > 1:
        se = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return Spread(mean, se, list(values))


def paired(ours: Spread, theirs: Spread) -> Spread:
    """Differences seed by seed."""
    return spread([a - b for a, b in zip(ours.by_seed, theirs.by_seed, strict=True)])


def _ablation(theirs: Mapping[int, Results], whole: Mapping[int, Results], method: str) -> Ablation:
    seeds = sorted(theirs.keys() & whole.keys())
    top1 = {part: spread([_top1(theirs[seed], method, part) for seed in seeds]) for part in PARTS}
    ours = {part: spread([_top1(whole[seed], OURS, part) for seed in seeds]) for part in PARTS}
    return Ablation(top1, {part: paired(top1[part], ours[part]) for part in PARTS})


def _frames(by_seed: Sequence[Mapping[str, FrameQuality]]) -> dict[str, dict[str, Spread]]:
    found: dict[str, dict[str, Spread]] = {}
    for name in by_seed[0]:
        for key in FRAMES:
            known = [one.value for one in (getattr(of[name], key) for of in by_seed if name in of) if one is not None]
            if len(known) == len(by_seed):
                found.setdefault(name, {})[key] = spread(known)
    return found


def _top1(results: Results, method: str, part: str) -> float:
    return getattr(results.measured[method], part).top1.value


def _names(every: Iterable[Comparison]) -> list[str]:
    return list(dict.fromkeys(name for one in every for name in one.differences))


def _seeds(compared: Comparison) -> str:
    count = "/".join(map(str, sorted({*compared.labelled})))
    seeds = ", ".join(map(str, compared.seeds))
    return (
        f"Label seeds {seeds}; {count} labelled clips. Mean ± standard error over the seeds, differences paired; "
        "of few seeds the error is itself uncertain. Data, test videos and pre-training are the same for all."
    )


def _method_rows(compared: Comparison) -> list[list[str]]:
    names = {STAGE_2: "after stage 2"}
    return [[names.get(name, name), *(_text(parts.get(p)) for p in PARTS)] for name, parts in compared.top1.items()]


def _text(figures: Spread | None, sign: str = "") -> str:
    return figure(Share(figures.mean, figures.se) if figures else None, sign)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


def _line(name: str, figures: Spread, sign: str = "") -> str:
    values = "  ".join(f"{value:{sign}.3f}   " for value in figures.by_seed)
    se = "  -" if figures.se is None else f"{figures.se:.3f}"
    return f"{name:<42}{values}  {figures.mean:{sign}.3f}  {se}"
