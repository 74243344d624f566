"""A recipe: everything that defines a run, as frozen dataclasses.

A field's bound stands in its type. Only light imports, so that `--help` and `--dry-run` answer at once. `digest`
covers what decides what is trained; `scale`, `methods` and `evaluate` stay out of it: another number of workers, one
more baseline or more clips at evaluation find the same artefacts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

from annotated_types import Ge, Interval

from finepseudo.errors import RecipeError
from finepseudo.fields import Count, CountOrZero, NotNegative, Positive, Seed, Several, Share, Side, check_fields
from finepseudo.models.table import ENCODERS, PARTS, Encoder, Part, Role, VideoOptions, choose
from finepseudo.storage.lineage import chosen, fingerprint, plain

Decay = Annotated[float, Interval(ge=0.1, le=1)]
Method = Literal[
    "frozen_probe",
    "supervised",
    "supervised_2x",
    "fixmatch",
    "timebalance",
    "pseudo_video",
    "pseudo_align",
    "finepseudo",
]


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What tells a method from the others. Those that train start from the same encoders; as many steps of f_E each."""

    baseline: bool = True  # finepseudo is compared with it
    trains: bool = True  # otherwise it is a linear classifier, fitted on D_l, of features that no label has shaped
    uses_p_A: bool = False  # its pseudo-labels are made of p_A, alone or fused with p_E
    uses_p_E: bool = False  # its pseudo-labels are made of p_E, alone or fused with p_A
    trains_f_A: bool = False  # its rounds may train f_A again
    own_rounds: bool = False  # its rounds train on D_u by no labels of p_A or p_E: driver/rounds.py says how

    @property
    def labels(self) -> bool:
        """Whether each of its rounds labels D_u by p_A or p_E."""
        return self.uses_p_A or self.uses_p_E

    @property
    def unlabelled(self) -> bool:
        """Whether it trains on D_u too; otherwise on D_l alone."""
        return self.labels or self.own_rounds

    @property
    def fuses(self) -> bool:
        """Whether its pseudo-labels are made of both."""
        return self.uses_p_A and self.uses_p_E


METHODS: dict[Method, MethodTraits] = {
    "frozen_probe": MethodTraits(trains=False),
    "supervised": MethodTraits(),
    "supervised_2x": MethodTraits(),
    "fixmatch": MethodTraits(own_rounds=True),
    "timebalance": MethodTraits(own_rounds=True),
    "pseudo_video": MethodTraits(uses_p_E=True),
    "pseudo_align": MethodTraits(uses_p_A=True, trains_f_A=True),
    "finepseudo": MethodTraits(baseline=False, uses_p_A=True, uses_p_E=True, trains_f_A=True),
}
"""All methods, in the order of the report."""

WORDS = (
    *("TPW-U", "TWP-U", "PTW-U", "PWT-U", "WTP-U", "WPT-U"),
    *("TW-U", "TTW-U", "TTTW-U", "TWW-U"),
    *("TP-U", "TP-F", "TPK-U", "TKP-U"),
)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The generated fine-grained data set (`finepseudo/rehearsal`)."""

    words: tuple[str, ...] = WORDS
    """Class words over the alphabet T (tuck), B (tuck backwards), P (pike), W (twist), K (straddle), ended by -U (arms
    up), -S (arms to the side) or -F (folded), and X (a box) or Y (a beam) where one stands beside."""
    train_per_class: Count = 80
    test_per_class: Count = 40
    persons: CountOrZero = 0
    """Persons that training clips show, each of one body, clothing, gym, camera and tempo; 0: every clip its own."""
    strangers: CountOrZero = 0  # persons that test clips alone show: half of these clips
    rates: Annotated[float, Interval(ge=1, le=100)] = 1.0
    """The first class has this many times the training clips of the last, those between fall evenly in the ratio."""
    size: Annotated[int, Ge(16)] = 112  # height and width of the files, pixels
    look: Annotated[int, Interval(ge=0, le=3)] = 1  # look nuisance, 0 (none) to 3
    time: Annotated[int, Interval(ge=0, le=2)] = 1  # time nuisance, 1 or 2
    seed: Seed = 0
    fps: Count = 25


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where videos and annotations are, and which videos are admitted."""

    root: str = ""  # folder or URI that holds the annotations and the videos; empty: <run>/data
    format: str = ""  # of the annotations: a name of READERS in data/formats; empty: by the ending of their files
    videos: str = "videos/{video_id}.mp4"
    """Path of a video below the root; `videos/{video_id}.*`: of any ending, `videos/**/{video_id}.*`: at any depth."""
    train: str = "train.json"  # annotations: a file, several by a `*`, or a folder that has one for each class
    test: str = "test.json"  # empty: those of `train` say it, or there are no test videos and no accuracies
    vocab: str = "vocab.json"  # a list of classes; the index is the label. Empty: the classes that labels name
    unlabelled: str = ""
    """Folder below the root, or paths with `*`; its videos that no annotation names are clips without a label."""
    rehearsal: Rehearsal | None = None  # set: the data set is generated under the root where it is missing
    probe: Literal["thorough", "quick"] = "thorough"
    """How files are looked at: decoded and tried, or by their headers alone where these leave no doubt."""
    min_frames: Count = 8  # videos with fewer frames are rejected; fewer than a clip asks for is fine, frames repeat
    max_rejected: Share = 0.02
    """Largest share of a stage's rows that may turn out to be undecodable before the stage ends with an error."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which training videos keep their label."""

    label_fraction: Share = 0.05  # share of labelled videos of each class, at least one video a class
    seed: Seed = 0
    labelled: str = ""
    """List of the clips that keep their label, below data.root or a URI: ids, paths, or the split file of another run.
    Empty: label_fraction of those that have one."""
    unlabelled: str = ""  # list of the clips to be labelled; empty: all other training clips
    answers: str = ""
    """Committed answers of an expert, `<run>/answers/<digest>` as jobs/review.py imports them: these clips are labelled
    too, as was answered, whatever the annotations say."""
    novel: tuple[str, ...] = ()
    """Classes no clip of which keeps its label: an open-world experiment, where D_u has classes that D_l lacks."""
    drop_novel: bool = False  # their clips are not in D_u either: the closed world that an open one is compared with
    held_out: Share = 0.0
    """Share of the labelled clips of each class, at least one, that are test clips; the same ones for every seed."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What the encoders see of a frame."""

    height: Side = 48  # height of decoded frames: scaled to cover, then cut at the centre
    width: Side = 48
    crop: Side = 40  # height and width that the encoders see


@dataclass(frozen=True, kw_only=True)
class Frames(Pixels):
    """Size of pixels and length of clips."""

    align: Several = 24  # T of f_A: frames spread over the whole action
    video: Several = 16  # T of f_E
    frozen: Several = 64
    """Frames of a clip, spread over the whole action, whose features are stored; only with models.frozen."""


@dataclass(frozen=True, kw_only=True)
class PixelAugment:
    """Augmentation of pixels, on the training device."""

    scale_min: Annotated[float, Interval(ge=0.1, le=1)] = 0.8
    """Smallest side of the random crop, as a share of the decoded frame; the largest is the whole frame."""
    cutout: Share = 0.5  # probability of one grey rectangle, the same in all frames of a clip
    cutout_side: Share = 0.35  # largest side of that rectangle, as a share of the crop
    gain: Annotated[float, Interval(ge=0, le=0.9)] = 0.3  # brightness and contrast are multiplied by 1 +- this
    colour: Annotated[float, Interval(ge=0, le=0.9)] = 0.15  # each channel is multiplied by 1 +- this


@dataclass(frozen=True, kw_only=True)
class Augment(PixelAugment):
    """Augmentation of training clips; the draws are a pure function of a plan row."""

    ends: Annotated[float, Interval(ge=0, le=0.4)] = 0.12  # largest share of the video cut off at either end
    warp: Annotated[float, Interval(ge=0, le=2)] = 0.3  # standard deviation of log g in the time warp u^g


@dataclass(frozen=True, kw_only=True)
class Models:
    """The two encoders: names and options of models/table.py, and where their weights come from."""

    frame: str = "tiny_vtn"
    video: str = "tiny_r2plus1d"
    frame_options: dict[str, str] = field(default_factory=dict[str, str])
    """Options of f_A, such as `positions sinusoidal`."""
    video_options: dict[str, str] = field(default_factory=dict[str, str])
    frame_weights: str = ""
    """URI of safetensors weights that f_A starts from, such as jobs/import_weights.py makes; empty: random ones. What
    the file lacks is initialised. Pre-training goes on from them unless gitdl.frame_steps is 0."""
    frame_sha256: str = ""
    video_weights: str = ""  # the same of f_E, and gitdl.video_steps; its number of classes may be another
    video_sha256: str = ""
    frozen: str = ""
    """An f_A whose backbone makes features of every clip's frames once; f_A and f_E then see these instead of pixels,
    and are encoders that take them: feature_vtn, feature_transformer. Empty: both see pixels."""
    frozen_options: dict[str, str] = field(default_factory=dict[str, str])
    frozen_weights: str = ""  # of that backbone, as frame_weights; empty: random ones
    frozen_sha256: str = ""

    def encoder(self, role: Role) -> Encoder:
        """f_A, f_E or the frozen one with its options.

        Raises RecipeError: no such encoder or option; what there is, is shown.
        """
        part: Part = "frame" if role == "frozen" else role
        return choose(getattr(self, role), getattr(self, f"{role}_options"), part=part)

    @property
    def stored(self) -> int:
        """C, stored features of a frame; 0 where the encoders see pixels."""
        return ENCODERS[self.frozen].width if self.frozen else 0


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with a one-cycle schedule, the same for every training."""

    weight_decay: NotNegative = 0.05
    clip: Positive = 1.0  # largest norm of the gradient
    warmup: Share = 0.3  # share of the steps in which the learning rate rises
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast with fp32 parameters and moments
    blocks_per_step: Count = 1
    """Micro-batches (blocks of the plan) that one optimiser step averages; the workers share them."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(AdamW):
    """What every training has in common, and the decay of the learning rate from layer to layer of each encoder."""

    frame_layer_decay: Decay = 1.0
    """A layer of f_A learns at this share of the rate of the one above it, what stands before the first layer too; what
    stands above the last has the whole rate. Of Transformers alone; 1: all learn alike."""
    video_layer_decay: Decay = 1.0  # the same of f_E


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What every loss without labels has: a temperature, and a projection head."""

    tau: Positive = 0.1
    hidden: Count = 256  # width of the projection head, dropped afterwards
    out: Count = 128


@dataclass(frozen=True, kw_only=True)
class GitdlLoss(Contrast):
    """L_GITDL."""

    sigma2: Positive = 10.0
    """Variance of the Gaussian target, frames^2."""


@dataclass(frozen=True, kw_only=True)
class TclrLoss(Contrast):
    """L_TCLR."""


@dataclass(frozen=True, kw_only=True)
class InstanceLoss(Contrast):
    """Contrast of videos, whatever the time of their clips: of the invariant teacher of timebalance."""


VIDEO_LOSSES: dict[str, type[GitdlLoss | TclrLoss]] = {"gitdl": GitdlLoss, "tclr": TclrLoss}
"""What f_E may be pre-trained by: the options of each loss. train/objectives.py has what computes it."""


@dataclass(frozen=True, kw_only=True)
class Gitdl(GitdlLoss, TclrLoss, InstanceLoss):
    """Pre-training without labels: of f_A by L_GITDL (METHOD: GITDL), of f_E by it or by L_TCLR."""

    video_loss: Literal["gitdl", "tclr"] = "gitdl"
    """A name of VIDEO_LOSSES. tclr: the global clip beside skip_global / skip_local local ones, end to end."""

    frame_steps: CountOrZero = 800  # steps of f_A, from models.frame_weights or random weights; 0: none
    video_steps: CountOrZero = 300  # steps of f_E on its time features, from models.video_weights or random; 0: none
    lr: NotNegative = 1e-3
    videos: Count = 16  # videos in one block
    frames: Several = 16  # n: frames of the global and of the local clip
    skip_global: Count = 4
    skip_local: Count = 2

    def chosen(self, part: Part) -> GitdlLoss | TclrLoss:
        """The options of one encoder's loss alone: what its training reads of this section."""
        return part_of(VIDEO_LOSSES[self.video_loss] if part == "video" else GitdlLoss, self)


@dataclass(frozen=True, kw_only=True)
class AvLoss:
    """L_AV = L_AT + w L_Score, and the distance that it is made of."""

    gamma: Positive = 0.1
    margin: NotNegative = 0.1
    triplet_weight: NotNegative = 1.0  # weight of L_AT; 0 is an ablation
    score_weight: NotNegative = 1.0  # w, weight of L_Score; 0 is an ablation


@dataclass(frozen=True, kw_only=True)
class Align(AvLoss):
    """Alignability-verification metric learning of f_A."""

    loss: Literal["av"] = "av"  # a name of ALIGN_LOSSES; its options stand here too
    steps: Count = 150
    lr: NotNegative = 7e-4
    classes: Several = 8  # P classes in one block
    clips: Several = 4  # M clips of each class

    def chosen(self) -> AvLoss:
        """The options of the loss alone: what a training by it reads of this section."""
        return part_of(ALIGN_LOSSES[self.loss], self)


ALIGN_LOSSES: dict[str, type[AvLoss]] = {"av": AvLoss}
"""What f_A may be aligned by: the options of each loss. train/objectives.py has what computes it."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Of f_E with labels or soft targets; there is nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Supervise:
    """Cross-entropy training of f_E on the labelled videos."""

    steps: Count = 500
    lr: NotNegative = 2e-3
    batch: Count = 32


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Self-training: label, extend the training set, train both encoders again."""

    count: Count = 1
    video_steps: Count = 500  # steps of f_E in each round
    video_lr: NotNegative = 1.2e-3
    video_label_share: Share = 0.25  # share of labelled videos in every mini-batch of f_E
    frame_rounds: CountOrZero = 0  # f_A is trained again in the first this many rounds
    frame_steps: Count = 100
    frame_lr: NotNegative = 4e-4
    frame_label_share: Share = 0.5
    targets: Literal["soft", "hard"] = "soft"


@dataclass(frozen=True, kw_only=True)
class FixMatch:
    """The method fixmatch; all else is as in the rounds of the other methods."""

    threshold: Share = 0.95  # f_E's label of the weak view is a target for the strong one from this confidence on


@dataclass(frozen=True, kw_only=True)
class Label:
    """How pseudo-labels are made and kept."""

    threshold: Share = 0.5  # theta: a pseudo-label is kept from this confidence on
    fusion: Literal["product", "mean"] = "product"
    """How p_A and p_E become one p: their product, weighed by what is estimated of both, or the paper's mean."""
    mean: Literal["log_odds", "score"] = "log_odds"  # what is averaged over the gallery members of a class
    per_class_max: CountOrZero = 0  # largest number of gallery members of a class; 0: all
    clips: Count = 1  # clips per unlabelled video, averaged before the fusion
    lag: Literal[0, 1] = 0
    """1: labels of the next round are made by f_E as it is after half of this round's steps, while it trains on; by 0,
    training and labelling wait for each other. f_A is that with which this round was labelled."""
    known: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Open world: a video less alignable with every class than this quantile of the labelled ones, each with the
    others, is taken for one of an unknown class and gets no label by p_A. 0: all classes are known."""
    min_coverage: Share = 0.01  # guard: stop when a smaller share of the unlabelled videos is accepted
    max_class_share: Share = 0.6  # guard: stop when one class takes a larger share of the accepted labels
    min_agreement: Share = 0.05  # guard: stop when p_E and p_A name the same class for a smaller share of the videos


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measures on the test videos."""

    clips: Count = 2  # clips per test video, averaged
    pair_videos: Several = 280  # held-out videos from which the pair test draws


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much hardware works on a run; never changes its result, so it is not part of the digest."""

    zero_stage: Literal[0, 1, 2, 3] = 1  # what DeepSpeed shards: 1 optimiser state, 2 gradients too, 3 parameters too
    recompute: tuple[Part, ...] = ()
    """Transformers, `frame` (f_A) or `video` (f_E) or both, whose layers keep their input alone for the backward pass,
    which computes the rest again: less memory, about a third more time."""
    train_workers: Count = 1  # workers of each training; must divide optimiser.blocks_per_step
    train_workers_min: CountOrZero = 0
    """With how few of them a training may start, and go on after a lost node; 0: all of them. Every number from here to
    train_workers must divide optimiser.blocks_per_step."""
    train_cpus: NotNegative = 1
    train_gpus: NotNegative = 0
    train_resource: str = ""  # custom Ray resource that a training worker asks for, such as `train`
    decode_workers: Count = 1  # decoding processes of each stream
    decode_resource: str = ""
    score_workers: Count = 1  # actors of the scoring pool
    score_cpus: NotNegative = 1
    score_gpus: NotNegative = 0
    score_resource: str = ""
    cache_dir: str = ""
    """Node-local folder of decoded clips; empty: a folder of this user below the temporary directory."""
    cache_gib: NotNegative = 4.0  # bound of that cache; 0 turns it off
    checkpoint_every: Count = 200  # optimiser steps between two committed checkpoints
    steps_per_block: Count = 8
    """Largest number of consecutive optimiser steps that are decoded as one block of a stream."""
    segment_steps: Count = 8000  # largest number of steps in one stream; a longer training is a chain of streams
    max_failures: CountOrZero = 3  # restarts of a training's workers before the run gives up
    probe_deadline_s: Annotated[float, Ge(0.1)] = 30.0  # longest time that one video may take to be probed
    decode_deadline_s: Annotated[float, Ge(0.1)] = 60.0  # longest time that one row may take to be decoded
    collective_timeout_s: Annotated[float, Ge(1)] = 180.0  # longest wait of one training worker for another
    stall_deadline_s: Annotated[float, Ge(1)] = 600.0
    """Longest time without a step of a training or a part of a pass; the wait for a lost node's place is one as well,
    so where resources_deadline_s is longer, it is that."""
    resources_deadline_s: NotNegative = 60.0  # longest wait for resources that the cluster does not have yet
    object_store_mib: Annotated[int, Ge(80)] = 1024  # object store of a cluster that is started here

    @property
    def least_train_workers(self) -> int:
        """As train_workers_min has it; all of them where it is 0."""
        return self.train_workers_min or self.train_workers

    @property
    def stalled_after_s(self) -> float:
        """As stall_deadline_s has it."""
        return max(self.stall_deadline_s, self.resources_deadline_s)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: str
    seed: Seed = 0  # seed of initial weights and of every plan
    methods: tuple[Method, ...] = ("frozen_probe", "supervised", "finepseudo")
    """finepseudo and its baselines; all but the frozen probe are trained from the same stage-2 weights."""
    data: Data = field(default_factory=Data)
    split: Split = field(default_factory=Split)
    frames: Frames = field(default_factory=Frames)
    augment: Augment = field(default_factory=Augment)
    models: Models = field(default_factory=Models)
    optimiser: Optimiser = field(default_factory=Optimiser)
    gitdl: Gitdl = field(default_factory=Gitdl)
    align: Align = field(default_factory=Align)
    supervise: Supervise = field(default_factory=Supervise)
    rounds: Rounds = field(default_factory=Rounds)
    fixmatch: FixMatch = field(default_factory=FixMatch)
    label: Label = field(default_factory=Label)
    evaluate: Evaluate = field(default_factory=Evaluate)
    scale: Scale = field(default_factory=Scale)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_across(self)

    def size_of(self, role: Role) -> int:
        """What an encoder is built for: height and width of frames, or the width of stored features."""
        return self.frames.crop if role == "frozen" else self.models.stored or self.frames.crop


OUTSIDE = ("scale", "methods", "evaluate")
"""Sections that may change between two starts in one run directory: they decide nothing that is trained."""
PLACES = {"data": ("root",), "models": ("frame_weights", "video_weights", "frozen_weights")}
"""Fields that say where something lies. It may move: what it is, is known by its own digest."""


def digest(recipe: Recipe) -> str:
    """Twelve hexadecimal digits of what decides the training: the fields that are not as they are by default."""
    body = {name: part for name, part in chosen(recipe).items() if name not in OUTSIDE}
    for section, places in PLACES.items():
        kept = {name: value for name, value in body.pop(section, {}).items() if name not in places}
        body |= {section: kept} if kept else {}
    return fingerprint(body)


def described(recipe: Recipe) -> dict[str, Any]:
    """All fields but those of OUTSIDE, as plain JSON values; `recipe_from` reads them."""
    return {name: part for name, part in plain(recipe).items() if name not in OUTSIDE}


def recipe_from(body: Mapping[str, Any]) -> Recipe:
    """The recipe that `described` wrote down; what it leaves out has its defaults.

    Raises RecipeError: it has a field that no recipe has (any more).
    """
    return _read(Recipe, body, "")


def changed(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields, such as `align.margin`, of other values; its rules hold for the result."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        section, _, field_name = name.partition(".")
        sections.setdefault(section, {})[field_name] = value
    parts = {name: dataclasses.replace(getattr(recipe, name), **values) for name, values in sections.items()}
    return dataclasses.replace(recipe, **parts)


T = TypeVar("T")


def part_of(kind: type[T], whole: T) -> T:
    """The fields of a section's base class alone, such as the loss of `align`: what one training reads of it."""
    return kind(**{item.name: getattr(whole, item.name) for item in dataclasses.fields(cast(Any, kind))})


def _read(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as a field's type: dataclasses from mappings, tuples from lists."""
    kinds = [option for option in (kind, *get_args(kind)) if dataclasses.is_dataclass(option)]
    if kinds and isinstance(value, Mapping):
        hints, body = get_type_hints(kinds[0]), cast(Mapping[str, Any], value)
        unknown = sorted(body.keys() - hints.keys())
        if unknown:
            raise RecipeError(f"{name}{unknown[0]}: no recipe has this field; it was written by another version")
        return cast(Any, kinds[0])(**{key: _read(hints[key], part, f"{name}{key}.") for key, part in body.items()})
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def _check_across(recipe: Recipe) -> None:
    k, workers = recipe.optimiser.blocks_per_step, recipe.scale.train_workers
    if k % workers:
        raise RecipeError(
            f"scale.train_workers = {workers} must divide optimiser.blocks_per_step = {k}, since the workers share "
            f"the blocks of a step; use {k} blocks with a divisor of {k} workers, or another number of blocks"
        )
    least = recipe.scale.least_train_workers
    if least > workers:
        raise RecipeError(
            f"scale.train_workers_min = {least} is more than scale.train_workers = {workers}; lower it, or set it to 0 "
            "for a training that always has all of them"
        )
    if uneven := [number for number in range(least, workers) if k % number]:
        raise RecipeError(
            f"scale.train_workers_min = {least} lets a training have {uneven[0]} workers, which must divide "
            f"optimiser.blocks_per_step = {k} as every number up to scale.train_workers = {workers} must; set it to "
            f"{uneven[-1] + 1}, or use another number of blocks"
        )
    if recipe.frames.crop > min(recipe.frames.height, recipe.frames.width):
        raise RecipeError(
            f"frames.crop = {recipe.frames.crop} is larger than the decoded frame, "
            f"frames.height x frames.width = {recipe.frames.height} x {recipe.frames.width}"
        )
    if not recipe.methods:
        raise RecipeError(f"methods: expected at least one of {', '.join(get_args(Method))}")
    if "{video_id}" not in recipe.data.videos or set("{}") & set(recipe.data.videos.replace("{video_id}", "")):
        raise RecipeError(
            f"data.videos: expected a path with {{video_id}} in it and no other braces, got {recipe.data.videos!r}"
        )
    if recipe.align.triplet_weight == 0 and recipe.align.score_weight == 0:
        raise RecipeError("align.triplet_weight and align.score_weight are both 0: f_A would learn nothing")
    rounds = recipe.rounds
    if recipe.label.lag and (rounds.count < 2 or rounds.video_steps < 2):
        raise RecipeError(
            "label.lag = 1 labels the next round in the middle of this one: expected at least 2 for rounds.count and "
            f"rounds.video_steps, got {rounds.count} and {rounds.video_steps}"
        )
    _check_models(recipe)
    if recipe.data.rehearsal is not None:
        _check_rehearsal(recipe.data.rehearsal)


def _check_models(recipe: Recipe) -> None:
    for role in get_args(Role):
        weights, sha = getattr(recipe.models, f"{role}_weights"), getattr(recipe.models, f"{role}_sha256")
        if bool(weights) != bool(sha):
            raise RecipeError(
                f"models.{role}_weights = {weights!r} and models.{role}_sha256 = {sha!r} belong together: "
                "give both (sha256sum of the file), or neither"
            )
    _check_frozen(recipe.models)
    for part in PARTS:
        recipe.models.encoder(part)
    _check_layers(recipe)
    _check_clips(recipe)


def _check_frozen(models: Models) -> None:
    """Who sees features needs somebody who makes them, and the other way round."""
    if models.frozen and not ENCODERS[models.encoder("frozen").name].width:
        raise RecipeError(f"models.frozen: {models.frozen} has no backbone per frame, it takes stored features itself")
    if not models.frozen and (models.frozen_weights or models.frozen_options):
        raise RecipeError("models.frozen_weights and models.frozen_options are of no encoder: name it in models.frozen")
    wanted = "features" if models.frozen else "pixels"
    for part in PARTS:
        name = models.encoder(part).name
        if ENCODERS[name].takes != wanted:
            there = [other for other, entry in ENCODERS.items() if (entry.part, entry.takes) == (part, wanted)]
            raise RecipeError(
                f"models.{part} = {name} takes {ENCODERS[name].takes}, but with models.frozen = {models.frozen!r} it "
                f"sees {wanted}; the choices are {', '.join(there)}"
            )


def _check_layers(recipe: Recipe) -> None:
    """What is asked of the layers of an encoder needs one that has some."""
    for part in PARTS:
        name = recipe.models.encoder(part).name
        decay = getattr(recipe.optimiser, f"{part}_layer_decay")
        asked = [f"optimiser.{part}_layer_decay = {decay:g}"] * (decay != 1)
        asked += [f"scale.recompute with {part}"] * (part in recipe.scale.recompute)
        if asked and not ENCODERS[name].layers:
            there = [other for other, entry in ENCODERS.items() if entry.part == part and entry.layers]
            raise RecipeError(
                f"{asked[0]}: {name} is no Transformer with layers of its own; leave it out, or use {', '.join(there)}"
            )


def _check_clips(recipe: Recipe) -> None:
    """Whether f_E takes clips of the size that the recipe gives them."""
    video, frames = recipe.models.encoder("video"), recipe.frames
    options = cast(VideoOptions, video.options)
    if options.time_stride > 1 and recipe.gitdl.video_steps:
        dense = (
            "set --models.video-options temporal_stride_1 true, or " if hasattr(options, "temporal_stride_1") else ""
        )
        raise RecipeError(
            f"gitdl.video_steps = {recipe.gitdl.video_steps}: {video.name} has one time feature for "
            f"{options.time_stride} frames, and pre-training compares frames; {dense}set gitdl.video_steps to 0"
        )
    if recipe.gitdl.video_loss == "tclr" and recipe.gitdl.video_steps:
        _check_local_clips(recipe.gitdl)
    for (name, value), part in zip(
        (("frames.video", frames.video), ("frames.crop", frames.crop)), options.multiples, strict=True
    ):
        if value % part:
            near = f"{value // part * part} or {-(-value // part) * part}" if value > part else str(part)
            raise RecipeError(f"{name} = {value}: {video.name} takes multiples of {part}; use {near}")


def _check_local_clips(gitdl: Gitdl) -> None:
    """Of TCLR: at least two, and each the time of as many frames of the global clip as any other."""
    count, rest = divmod(gitdl.skip_global, gitdl.skip_local)
    if rest or count < 2:
        raise RecipeError(
            f"gitdl.skip_global = {gitdl.skip_global} and gitdl.skip_local = {gitdl.skip_local}: with video_loss tclr "
            "the global clip is skip_global / skip_local local ones, a whole number from 2 on; its authors take 4 and 1"
        )
    if gitdl.frames % count:
        raise RecipeError(
            f"gitdl.frames = {gitdl.frames}: with video_loss tclr a multiple of skip_global / skip_local = {count}"
        )


def _check_rehearsal(spec: Rehearsal) -> None:
    if len(set(spec.words)) < 2 or len(set(spec.words)) < len(spec.words):
        raise RecipeError(f"data.rehearsal.words: expected at least two classes, each once, got {spec.words}")
    wrong = [word for word in spec.words if not re.fullmatch("[TBPWK]+-[USF][XY]?", word)]
    if wrong:
        raise RecipeError(
            "data.rehearsal.words: expected letters of T, B, P, W, K, then -U, -S or -F, then X, Y or nothing, got "
            f"{wrong[0]!r}"
        )
    if spec.strangers and not spec.persons:
        raise RecipeError("data.rehearsal.strangers: there are none where no persons are known; set persons too")
    if spec.size % 2:
        raise RecipeError(f"data.rehearsal.size: expected an even number of pixels, got {spec.size}")
