"""What a run shows to the outside: the names, units and labels of its metrics, one place for all that speak of them.

The table in docs/operations.md, the dashboard and the alerts of cluster/observability/ are checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

EXPORTED = "ray_"  # Ray puts this before every name at its endpoint


@dataclass(frozen=True)
class Metric:
    """All are gauges: Ray forgets the gauges of a driver that has ended, while its counters would stay for ever."""

    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = field(default=())

    @property
    def exported(self) -> str:
        """Its name at Ray's endpoint."""
        return EXPORTED + self.name


@dataclass(frozen=True)
class Figure:
    """A value of a metric."""

    metric: Metric
    value: float
    labels: dict[str, str]


RUN, STAGE, ROUND = ("run",), ("run", "stage"), ("run", "round")

ACTIVE = Metric("finepseudo_run_active", "0 or 1", "1 while the driver works on the run, 0 when it has ended", RUN)
PROGRESS = Metric(
    "finepseudo_progress_timestamp_seconds",
    "Unix time, seconds",
    "when something was last committed or told its progress",
    RUN,
)
DONE = Metric("finepseudo_progress_ratio", "0 to 1", "share of a stage under way that is done", STAGE)
LEFT = Metric("finepseudo_left_seconds", "seconds", "that a stage under way still takes, at its present pace", STAGE)
LOSS = Metric("finepseudo_loss", "as the objective has it", "last loss of a training under way", STAGE)
STEPS = Metric("finepseudo_committed_steps", "optimiser steps", "of a training, up to its last commit", STAGE)
SECONDS = Metric(
    "finepseudo_stage_seconds",
    "seconds",
    "up to the last commit, by kind. Of a training's mean worker: launch, setup, wait, transfer, compute, commit, and "
    "decode by the actors that served it. Of a pass: decode, predict of all actors; start, total of the driver",
    (*STAGE, "kind"),
)
CLIPS = Metric("finepseudo_stage_clips", "clips", "that a stage has taken up to its last commit", STAGE)
DECODE_RATE = Metric(
    "finepseudo_decode_clips_per_second", "clips/s", "that one decoding process made for a stage, cache included", STAGE
)
CACHE_HITS = Metric("finepseudo_cache_hit_ratio", "0 to 1", "share of a training's reads that the cache had", STAGE)
REJECTED = Metric("finepseudo_rejected_clips", "clips", "that could not be used; stage `prepare`: when probed", STAGE)
REJECTED_SHARE = Metric(
    "finepseudo_rejected_ratio", "0 to 1", "share of all clips that a stage asks for which could not be used", STAGE
)
COVERAGE = Metric("finepseudo_label_coverage_ratio", "0 to 1", "share of D_u that is accepted", ROUND)
AGREEMENT = Metric(
    "finepseudo_label_agreement_ratio", "0 to 1", "share of D_u where p_E and p_A name the same class", ROUND
)
LARGEST = Metric(
    "finepseudo_label_largest_class_ratio", "0 to 1", "share of the accepted labels that one class takes", ROUND
)
MIN_COVERAGE = Metric("finepseudo_guard_min_coverage_ratio", "0 to 1", "`label.min_coverage`: the run stops below", RUN)
MIN_AGREEMENT = Metric(
    "finepseudo_guard_min_agreement_ratio", "0 to 1", "`label.min_agreement`: the run stops below", RUN
)
MAX_CLASS = Metric("finepseudo_guard_max_class_ratio", "0 to 1", "`label.max_class_share`: the run stops above", RUN)
MAX_REJECTED = Metric("finepseudo_guard_max_rejected_ratio", "0 to 1", "`data.max_rejected`: the run stops above", RUN)

METRICS: Sequence[Metric] = (
    ACTIVE, PROGRESS, DONE, LEFT, LOSS, STEPS, SECONDS, CLIPS, DECODE_RATE, CACHE_HITS, REJECTED, REJECTED_SHARE,
    COVERAGE, AGREEMENT, LARGEST, MIN_COVERAGE, MIN_AGREEMENT, MAX_CLASS, MAX_REJECTED,
)  # fmt: skip


def table() -> str:
    """As Markdown."""
    rows = [f"| `{one.exported}` | {one.unit} | {', '.join(one.labels)} | {one.help} |" for one in METRICS]
    return "\n".join(["| metric | unit | labels | meaning |", "|---|---|---|---|", *rows])
