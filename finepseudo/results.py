"""The figures of a run, from labels, probabilities and embeddings: pure, and the same as results.json has them.

Axes: N videos, P pairs, K classes, T frames, D embedding. What is compared comes with its standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from finepseudo import measures
from finepseudo.align import frames
from finepseudo.align.fusion import Fusion
from finepseudo.align.score import distances
from finepseudo.errors import ArtefactError

VERSION = 5  # of results.json
CURVE_POINTS = 50  # of a precision x coverage curve, about: what a plot can show
MOST_CONFUSED = 12  # pairs of classes that are kept
RESAMPLES = 50  # draws of videos for the standard error of the pair test

Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Share:
    """A share, or a difference of shares, and its standard error."""

    value: float
    se: float | None


@dataclass(frozen=True)
class Interval:
    """A figure, and the 95 % interval of its bootstrap over videos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """Videos of one class that were given another; classes are places in Results.classes."""

    truth: int
    label: int
    videos: int
    share: float  # of the true class's videos


@dataclass(frozen=True)
class Accuracy:
    """How well probabilities name the classes of N videos."""

    top1: Share
    top5: Share
    mean_class: Share
    calibration_error: float
    per_class: list[float | None]  # None for a class without a video
    confused: list[Confusion]  # the most confused pairs, at most MOST_CONFUSED
    videos: int


@dataclass(frozen=True)
class Curve:
    """Precision against coverage, from the strictest threshold."""

    coverage: list[float]
    precision: list[float]


@dataclass(frozen=True, eq=False)
class RoundLabels:
    """The labels of a round, one entry a video: of p, of p_A, of p_E, each with its confidence."""

    accepted: NDArray[np.bool_]
    label: Labels
    label_A: Labels
    label_E: Labels
    confidence: Floats
    confidence_A: Floats
    confidence_E: Floats
    knownness: Floats


@dataclass(frozen=True)
class OpenWorld:
    """How well a round tells the videos of classes that D_l lacks, the novel ones, from the others."""

    novel: int  # unlabelled videos whose truth is such a class
    auroc: dict[str, Share]  # of known against novel, by `knownness` (max Sbar), `p_A` and `p_E` (each by its maximum)
    contamination: Share | None  # share of the accepted videos of known truth that are novel
    coverage_known: float  # share of the others that are accepted


@dataclass(frozen=True)
class RoundQuality:
    """How good the labels of a round are, by a truth that labelling never saw."""

    unlabelled: int
    accepted: int
    coverage: float
    agreement: float
    precision_all: dict[str, Share | None]  # of p_E, p_A and p, whatever the threshold
    precision_accepted: dict[str, Share | None]  # the same over the accepted videos; None where nothing is accepted
    calibration_error: float | None
    accepted_per_class: list[int]
    known_per_class: list[int]  # of the accepted ones, those whose truth is known
    right_per_class: list[int]  # of these
    curves: dict[str, Curve]  # empty where no truth is known
    known: int  # unlabelled videos whose truth is known: what precision, calibration error and curves are over
    open_world: OpenWorld | None  # None where D_u has no video of a class that D_l lacks, as far as it is known


@dataclass(frozen=True)
class PairTest:
    """Average precision of same-class pairs of held-out videos; `scores` is empty without pairs of both kinds."""

    videos: int
    pairs: int
    same: int
    scores: dict[str, Share]


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """What is known of the frames that were embedded."""

    phase_NT: Labels  # codes
    progress_NT: Floats  # through the whole action, 0..1


@dataclass(frozen=True)
class FrameQuality:
    """What one f_A's embeddings know of the course of an action (align/frames.py); None where it is not known."""

    videos: int  # held-out ones, those of the pair test
    kendall_tau: Interval | None  # mean over ordered pairs of one class; None where no class has two videos
    progression: Interval | None  # R²; None, as the phase, where the truth of frames is not known
    phase: Interval | None  # share of the frames whose phase is found
    phase_chance: float | None  # of those in the phase that most labelled frames are in


@dataclass(frozen=True)
class RecipeName:
    name: str
    digest: str
    seed: int


@dataclass(frozen=True)
class SplitCounts:
    seed: int
    fingerprint: str
    labelled: int
    unlabelled: int


@dataclass(frozen=True)
class ManifestCounts:
    fingerprint: str
    usable: dict[str, int]  # by split
    rejected: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """Of one method; the frozen probe is a classifier on f_E alone."""

    f_E: Accuracy
    p_A: Accuracy | None = None
    fused: Accuracy | None = None
    fusion: Fusion | None = None


@dataclass(frozen=True)
class RoundResult:
    name: str
    quality: RoundQuality
    fusion: Fusion


@dataclass(frozen=True)
class Snapshots:
    """Folders of the weights of a pair of encoders, below the run or as URIs, and the digests of these."""

    f_A: str
    f_E: str
    digest_f_A: str
    digest_f_E: str


STAGE_2 = "stage_2"  # names the encoders that all methods start from, beside the methods


@dataclass(frozen=True)
class Results:
    """Everything that a run found out: what results.json holds."""

    recipe: RecipeName
    split: SplitCounts
    manifest: ManifestCounts
    classes: list[str]
    measured: dict[str, Measured]  # by method, and STAGE_2
    rounds: dict[str, list[RoundResult]]  # by method
    pairs: PairTest
    frames: dict[str, FrameQuality]  # by f_A: pretrained, aligned; empty without held-out videos
    gains: dict[str, Share]  # of finepseudo: `<f_E or fused>, over <method>`
    snapshots: dict[str, Snapshots]  # by method, and STAGE_2
    prediction: str  # what the run stands by: `<method>/<part>`; fused, where there is an f_A (docs/performance.md)
    predictions: str  # below the run: a table with one row a test video, its truth, and the label by `<method>/<part>`
    timing: dict[str, dict[str, float]]  # seconds by kind, of each training and pass, by its folder
    version: int = VERSION

    def all_rounds(self) -> list[RoundResult]:
        return [one for rounds in self.rounds.values() for one in rounds]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> Results:
        """Raises ArtefactError where the data is of another version or no results; the first wrong field is named."""
        try:
            body = json.loads(data)
            version = cast(dict[str, Any], body).get("version") if isinstance(body, dict) else None
            if version != VERSION:
                raise ArtefactError(
                    f"results of version {version}, expected {VERSION}: another version of this program wrote them; "
                    "jobs/evaluate.py writes them again"
                )
            return _READER.validate_python(body)
        except ValidationError as error:
            where, why = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
            raise ArtefactError(f"results are damaged: field {where}: {why}") from None
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"results are damaged: not JSON: {error}") from None


_READER = TypeAdapter(Results)


def accuracy(p_NK: Floats, truth_N: Labels) -> Accuracy:
    """Top-1, top-5 and the mean over classes with their standard errors, calibration error, each class, confusions.

    The variance of the mean over classes is the sum of the classes' variances p (1 - p) / n, by their number squared.
    """
    N, K = p_NK.shape
    label_N = p_NK.argmax(1)
    per_class_K = measures.per_class_accuracy(label_N, truth_N, K)
    count_K = measures.class_counts(truth_N, K)
    top1, top5 = (measures.top_k_accuracy(p_NK, truth_N, k) for k in (1, min(5, K)))
    tested_K = count_K > 0
    variance = per_class_K[tested_K] * (1 - per_class_K[tested_K]) / count_K[tested_K]
    return Accuracy(
        top1=Share(top1, measures.proportion_standard_error(top1, N)),
        top5=Share(top5, measures.proportion_standard_error(top5, N)),
        mean_class=Share(float(per_class_K[tested_K].mean()), float(np.sqrt(variance.sum()) / tested_K.sum())),
        calibration_error=measures.calibration_error(p_NK.max(1), label_N == truth_N),
        per_class=[float(share) if count else None for share, count in zip(per_class_K, count_K, strict=True)],
        confused=[
            Confusion(truth, label, videos, videos / int(count_K[truth]))
            for truth, label, videos in measures.most_confused(label_N, truth_N, K, MOST_CONFUSED)
        ],
        videos=N,
    )


def round_quality(
    labels: RoundLabels, truth_N: Labels, known_N: NDArray[np.bool_], num_classes: int, novel: Sequence[int] = ()
) -> RoundQuality:
    """Precision of p_E, p_A and p, over all and over the accepted videos, with coverage, agreement and curves.

    Args:
        truth_N: any class where it is not known.
        known_N: where it is; what needs the truth is over these alone, and None of none.
        novel: classes without a labelled video.
    """
    by_p = {"p_E": labels.label_E, "p_A": labels.label_A, "p": labels.label}
    scored = {
        "p": (labels.label, labels.confidence),
        "p_A": (labels.label_A, labels.confidence_A),
        "p_E": (labels.label_E, labels.confidence_E),
    }
    kept_N, right_N = labels.accepted, known_N & (labels.label == truth_N)
    counts = {"accepted": kept_N, "known": kept_N & known_N, "right": kept_N & right_N}
    per_class = {key: measures.class_counts(labels.label[of_N], num_classes).tolist() for key, of_N in counts.items()}
    some = bool(known_N.any())
    return RoundQuality(
        unlabelled=len(kept_N),
        accepted=int(kept_N.sum()),
        coverage=float(kept_N.mean()),
        agreement=measures.agreement(labels.label_A, labels.label_E),
        precision_all={name: share((label_N == truth_N)[known_N]) for name, label_N in by_p.items()},
        precision_accepted={name: share((label_N == truth_N)[known_N & kept_N]) for name, label_N in by_p.items()},
        calibration_error=measures.calibration_error(labels.confidence[known_N], right_N[known_N]) if some else None,
        accepted_per_class=per_class["accepted"],
        known_per_class=per_class["known"],
        right_per_class=per_class["right"],
        curves={
            name: _curve(confidence_N[known_N], label_N[known_N], truth_N[known_N])
            for name, (label_N, confidence_N) in scored.items()
            if some
        },
        known=int(known_N.sum()),
        open_world=_open_world(labels, known_N, np.isin(truth_N, novel)),
    )


def _open_world(labels: RoundLabels, known_N: NDArray[np.bool_], novel_N: NDArray[np.bool_]) -> OpenWorld | None:
    novel_N, other_N, kept_N = known_N & novel_N, known_N & ~novel_N, labels.accepted
    if not novel_N.any() or not other_N.any():
        return None
    scores = {"knownness": labels.knownness, "p_A": labels.confidence_A, "p_E": labels.confidence_E}
    return OpenWorld(
        novel=int(novel_N.sum()),
        auroc={name: Share(*measures.auroc(score_N[known_N], other_N[known_N])) for name, score_N in scores.items()},
        contamination=share(novel_N[known_N & kept_N]),
        coverage_known=float(kept_N[other_N].mean()),
    )


def share(right_N: NDArray[np.bool_]) -> Share | None:
    """The share of right ones; None of none."""
    if not len(right_N):
        return None
    value = float(right_N.mean())
    return Share(value, measures.proportion_standard_error(value, len(right_N)))


def gain(ours_N: Labels, theirs_N: Labels, truth_N: Labels) -> Share:
    """Top-1 of ours minus top-1 of theirs on the same videos, with the standard error of the paired difference."""
    gain_N = (ours_N == truth_N).astype(float) - (theirs_N == truth_N).astype(float)
    se = float(gain_N.std(ddof=1) / np.sqrt(len(gain_N))) if len(gain_N) > 1 else None
    return Share(float(gain_N.mean()), se)


def gains(predictions: Mapping[str, Labels], truth_N: Labels, ours: str, others: Sequence[str]) -> dict[str, Share]:
    """Of `ours` over every other method, for f_E and fused; labels are by `<method>/<part>`, missing ones left out."""
    return {
        f"{part}, over {other}": gain(predictions[f"{ours}/{part}"], predictions[f"{other}/{part}"], truth_N)
        for part in ("f_E", "fused")
        for other in others
        if {f"{ours}/{part}", f"{other}/{part}"} <= predictions.keys()
    }


def pair_test(pretrained_NTD: Tensor, aligned_NTD: Tensor, label_N: Labels, gamma: float) -> PairTest:
    """Do two held-out videos show the same action? Average precision by four scores (the paper's Fig. 1c).

    pooled_cosine     <mean of u, mean of v>, normalised, of the pre-trained f_A
    timestamp_cosine  mean over t of <u_t, v_t>, times T
    dtw               -D(u, v) of the pre-trained f_A
    score             -D(u, v) of f_A after L_AV: S falls with D, so the order of pairs is that of S
    """
    mean_ND = torch.nn.functional.normalize(pretrained_NTD.mean(1), dim=-1)
    emb_NX = pretrained_NTD.flatten(1)
    by_score = {
        "pooled_cosine": mean_ND @ mean_ND.T,
        "timestamp_cosine": emb_NX @ emb_NX.T,
        "dtw": -distances(pretrained_NTD, pretrained_NTD, gamma),
        "score": -distances(aligned_NTD, aligned_NTD, gamma),
    }
    first_P, second_P = np.triu_indices(len(label_N), k=1)
    same_P = label_N[first_P] == label_N[second_P]
    video_P2 = np.stack([first_P, second_P], 1)
    scores: dict[str, Share] = {}
    if 0 < same_P.sum() < len(same_P):
        for name, score_NN in by_score.items():
            score_P = score_NN.numpy()[first_P, second_P]
            value = measures.pair_average_precision(score_P, same_P)
            scores[name] = Share(value, measures.pair_ap_standard_error(score_P, same_P, video_P2, resamples=RESAMPLES))
    return PairTest(len(label_N), len(first_P), int(same_P.sum()), scores)


def frame_quality(
    labelled_GTD: Tensor, test_NTD: Tensor, label_N: Labels, truth: tuple[FrameTruth, FrameTruth] | None
) -> FrameQuality:
    """Kendall's tau, phase progression and phase classification of held-out videos, as align/frames.py defines them.

    Args:
        label_N: classes of the held-out videos.
        truth: of the labelled videos and of the held-out ones; None where it is not known.
    """
    N = len(label_N)
    tau_NN = frames.kendall_tau(test_NTD, torch.as_tensor(label_N)).numpy()
    there_NN, tau_NN = ~np.isnan(tau_NN), np.nan_to_num(tau_NN)

    def tau(count_N: NDArray[np.int64]) -> float:
        weight_NN = np.outer(count_N, count_N) * there_NN
        return float((weight_NN * tau_NN).sum() / weight_NN.sum()) if weight_NN.any() else np.nan

    found = FrameQuality(N, _interval(tau, N), None, None, None)
    if truth is None:
        return found
    of_labelled, of_test = truth
    progress_NT = torch.as_tensor(of_test.progress_NT)
    found_NT = frames.phase_progression(labelled_GTD, torch.as_tensor(of_labelled.progress_NT), test_NTD)
    phase_NT = frames.phase_classification(labelled_GTD, torch.as_tensor(of_labelled.phase_NT), test_NTD).numpy()
    right_N = (phase_NT == of_test.phase_NT).mean(1)
    codes, counts = np.unique(of_labelled.phase_NT, return_counts=True)
    return replace(
        found,
        progression=_interval(lambda count_N: frames.r_squared(found_NT, progress_NT, torch.as_tensor(count_N)), N),
        phase=_interval(lambda count_N: float((right_N * count_N).sum() / count_N.sum()), N),
        phase_chance=float((of_test.phase_NT == codes[counts.argmax()]).mean()),
    )


def _interval(statistic: Callable[[NDArray[np.int64]], float], count: int) -> Interval | None:
    """None where the figure is not defined."""
    value, bounds = statistic(np.ones(count, np.int64)), measures.bootstrap_interval(statistic, count)
    return None if np.isnan(value) or bounds is None else Interval(value, *bounds)


def _curve(confidence_N: Floats, label_N: Labels, truth_N: Labels) -> Curve:
    curve = measures.precision_coverage_curve(confidence_N, label_N, truth_N)
    keep = np.unique(np.linspace(0, len(curve.coverage) - 1, CURVE_POINTS).astype(int))
    return Curve(curve.coverage[keep].tolist(), curve.precision[keep].tolist())
