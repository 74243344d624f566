"""A recipe: everything that defines a run, as frozen dataclasses.

Standard library only, so that `--help` and `--dry-run` answer at once. `digest` covers what decides
what is trained; `scale`, `methods` and `evaluate` stay out of it: another number of workers, one more baseline or
more clips at evaluation find the same artefacts.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from finepseudo.errors import RecipeError
from finepseudo.storage.lineage import chosen, fingerprint, plain

Method = Literal["finepseudo", "supervised", "supervised_2x", "pseudo_video", "pseudo_align"]

WORDS = (
    *("TPW-U", "TWP-U", "PTW-U", "PWT-U", "WTP-U", "WPT-U"),
    *("TW-U", "TTW-U", "TTTW-U", "TWW-U"),
    *("TP-U", "TP-F", "TPK-U", "TKP-U"),
)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The generated fine-grained data set (finepseudo/rehearsal.py)."""

    words: tuple[str, ...] = WORDS
    """Class words over the alphabet T (tuck), P (pike), W (twist), K (straddle), ended by -U or -F."""
    train_per_class: int = 80
    test_per_class: int = 40
    size: int = 112
    """Height and width of the files, pixels."""
    look: int = 1
    """Look nuisance, 0 (none) to 3."""
    time: int = 1
    """Time nuisance, 1 or 2."""
    seed: int = 0
    fps: int = 25


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where videos and annotations are, and which videos are admitted."""

    root: str = ""
    """Folder or URI that holds the annotations and the videos; empty: <run>/data."""
    videos: str = "videos/{video_id}.mp4"
    """Path of a video below the root."""
    train: str = "train.json"
    """Annotations in Diving48's form: a list of vid_name, label, start_frame, end_frame."""
    test: str = "test.json"
    vocab: str = "vocab.json"
    """A list of classes; the index is the label."""
    rehearsal: Rehearsal | None = None
    """Set: the data set is generated under the root where it is missing."""
    min_frames: int = 8
    """Videos with fewer frames are rejected; fewer than a clip asks for is fine, frames repeat."""
    max_rejected: float = 0.02
    """Largest share of a stage's rows that may turn out to be undecodable before the stage ends with an error."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which training videos keep their label."""

    label_fraction: float = 0.05
    """Share of labelled videos of each class, at least one video a class."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What the encoders see of a frame."""

    height: int = 48
    """Height of decoded frames: scaled to cover, then cut at the centre."""
    width: int = 48
    crop: int = 40
    """Height and width that the encoders see."""


@dataclass(frozen=True, kw_only=True)
class Frames(Pixels):
    """Size of pixels and length of clips."""

    align: int = 24
    """T of f_A: frames spread over the whole action."""
    video: int = 16
    """T of f_E."""


@dataclass(frozen=True, kw_only=True)
class PixelAugment:
    """Augmentation of pixels, on the training device."""

    scale_min: float = 0.8
    """Smallest side of the random crop, as a share of the decoded frame; the largest is the whole frame."""
    cutout: float = 0.5
    """Probability of one grey rectangle, the same in all frames of a clip."""
    cutout_side: float = 0.35
    """Largest side of that rectangle, as a share of the crop."""
    gain: float = 0.3
    """Brightness and contrast are multiplied by 1 +- this."""
    colour: float = 0.15
    """Each channel is multiplied by 1 +- this."""


@dataclass(frozen=True, kw_only=True)
class Augment(PixelAugment):
    """Augmentation of training clips; the draws are a pure function of a plan row."""

    ends: float = 0.12
    """Largest share of the video cut off at either end."""
    warp: float = 0.3
    """Standard deviation of log g in the time warp u^g."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The two encoders: names of the table in models/encoders.py, and where their weights come from."""

    frame: str = "tiny_vtn"
    video: str = "tiny_r2plus1d"
    frame_weights: str = ""
    """URI of safetensors weights; empty: pre-trained here without labels."""
    frame_sha256: str = ""
    video_weights: str = ""
    video_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW with a one-cycle schedule, the same for every training."""

    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient."""
    warmup: float = 0.3
    """Share of the steps in which the learning rate rises."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast with fp32 parameters and moments."""
    blocks_per_step: int = 1
    """Micro-batches (blocks of the plan) that one optimiser step averages; the workers share them."""


@dataclass(frozen=True, kw_only=True)
class GitdlLoss:
    """L_GITDL and its projection head."""

    sigma2: float = 10.0
    """Variance of the Gaussian target, frames^2."""
    tau: float = 0.1
    hidden: int = 256
    """Width of the projection head, dropped afterwards."""
    out: int = 128


@dataclass(frozen=True, kw_only=True)
class Gitdl(GitdlLoss):
    """Pre-training without labels (METHOD: GITDL)."""

    frame_steps: int = 800
    """Steps of f_A."""
    video_steps: int = 300
    """Steps of f_E on its time features; none where weights are given."""
    lr: float = 1e-3
    videos: int = 16
    """Videos in one block."""
    frames: int = 16
    """n: frames of the global and of the local clip."""
    skip_global: int = 4
    skip_local: int = 2


@dataclass(frozen=True, kw_only=True)
class AvLoss:
    """L_AV = L_AT + w L_Score, and the distance that it is made of."""

    gamma: float = 0.1
    margin: float = 0.1
    triplet_weight: float = 1.0
    """Weight of L_AT; 0 is an ablation."""
    score_weight: float = 1.0
    """w, weight of L_Score; 0 is an ablation."""


@dataclass(frozen=True, kw_only=True)
class Align(AvLoss):
    """Alignability-verification metric learning of f_A (L_AV = L_AT + w L_Score)."""

    steps: int = 150
    lr: float = 7e-4
    classes: int = 8
    """P classes in one block."""
    clips: int = 4
    """M clips of each class."""


@dataclass(frozen=True, kw_only=True)
class Supervise:
    """Cross-entropy training of f_E on the labelled videos."""

    steps: int = 500
    lr: float = 2e-3
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Self-training: label, extend the training set, train both encoders again."""

    count: int = 1
    video_steps: int = 500
    """Steps of f_E in each round."""
    video_lr: float = 1.2e-3
    video_label_share: float = 0.25
    """Share of labelled videos in every mini-batch of f_E."""
    frame_rounds: int = 0
    """f_A is trained again in the first this many rounds."""
    frame_steps: int = 100
    frame_lr: float = 4e-4
    frame_label_share: float = 0.5
    targets: Literal["soft", "hard"] = "soft"


@dataclass(frozen=True, kw_only=True)
class Label:
    """How pseudo-labels are made and kept."""

    threshold: float = 0.5
    """theta: a pseudo-label is kept from this confidence on."""
    mean: Literal["log_odds", "score"] = "log_odds"
    """What is averaged over the gallery members of a class."""
    per_class_max: int = 0
    """Largest number of gallery members of a class; 0: all."""
    clips: int = 1
    """Clips per unlabelled video, averaged before the fusion."""
    min_coverage: float = 0.01
    """guard: stop when a smaller share of the unlabelled videos is accepted."""
    max_class_share: float = 0.6
    """guard: stop when one class takes a larger share of the accepted labels."""
    min_agreement: float = 0.05
    """guard: stop when p_E and p_A name the same class for a smaller share of the videos."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measures on the test videos."""

    clips: int = 2
    """Clips per test video, averaged."""
    pair_videos: int = 280
    """Held-out videos from which the pair test draws."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much hardware works on a run; never changes its result, so it is not part of the digest."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards: 1 optimiser state, 2 gradients too, 3 parameters too."""
    train_workers: int = 1
    """Workers of each training; must divide optimiser.blocks_per_step."""
    train_cpus: float = 1
    train_gpus: float = 0
    train_resource: str = ""
    """Custom Ray resource that a training worker asks for, such as `train`."""
    decode_workers: int = 1
    """Decoding processes of each stream."""
    decode_resource: str = ""
    score_workers: int = 1
    """Actors of the scoring pool."""
    score_cpus: float = 1
    score_gpus: float = 0
    score_resource: str = ""
    cache_dir: str = ""
    """Node-local folder of decoded clips; empty: a folder of this user below the temporary directory."""
    cache_gib: float = 4.0
    """Bound of that cache; 0 turns it off."""
    checkpoint_every: int = 200
    """Optimiser steps between two committed checkpoints."""
    steps_per_block: int = 8
    """Largest number of consecutive optimiser steps that are decoded as one block of a stream."""
    segment_steps: int = 8000
    """Largest number of steps in one stream; a longer training is a chain of streams."""
    max_failures: int = 3
    """Restarts of a training's workers before the run gives up."""
    probe_deadline_s: float = 30.0
    """Longest time that one video may take to be probed."""
    collective_timeout_s: float = 180.0
    """Longest wait of one training worker for another."""
    resources_deadline_s: float = 60.0
    """Longest wait for resources that the cluster does not have yet."""
    object_store_mib: int = 1024
    """Object store of a cluster that is started here."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: str
    seed: int = 0
    """Seed of initial weights and of every plan."""
    methods: tuple[Method, ...] = ("supervised", "finepseudo")
    """finepseudo and the baselines to train from the same stage-2 weights."""
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
    label: Label = field(default_factory=Label)
    evaluate: Evaluate = field(default_factory=Evaluate)
    scale: Scale = field(default_factory=Scale)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_across(self)


OUTSIDE = ("scale", "methods", "evaluate")
"""Parts that may change between two starts in one run directory: they decide nothing that is trained."""


def digest(recipe: Recipe) -> str:
    """Twelve hexadecimal digits of what decides the training: the fields that are not as they are by default."""
    return fingerprint({name: part for name, part in chosen(recipe).items() if name not in OUTSIDE})


def decisive(recipe: Recipe) -> dict[str, Any]:
    """All fields that decide the training, as plain JSON values."""
    return {name: part for name, part in plain(recipe).items() if name not in OUTSIDE}


def recipe_from(body: Mapping[str, Any]) -> Recipe:
    """The recipe that `decisive` described; what it leaves out has its defaults.

    Raises:
        RecipeError: it has a field that no recipe has (any more).
    """
    return _read(Recipe, body, "")


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


# field -> (smallest, largest); None: no bound. Counts that are 0 where a stage may be left out start at 0.
_RANGES: dict[str, tuple[float, float | None]] = {
    "data.min_frames": (1, None),
    "data.max_rejected": (0, 1),
    "rehearsal.train_per_class": (1, None),
    "rehearsal.test_per_class": (1, None),
    "rehearsal.size": (16, None),
    "rehearsal.look": (0, 3),
    "rehearsal.time": (0, 2),
    "rehearsal.fps": (1, None),
    "split.label_fraction": (0, 1),
    "frames.height": (8, None),
    "frames.width": (8, None),
    "frames.crop": (8, None),
    "frames.align": (2, None),
    "frames.video": (2, None),
    "augment.scale_min": (0.1, 1),
    "augment.cutout": (0, 1),
    "augment.cutout_side": (0, 1),
    "augment.gain": (0, 0.9),
    "augment.colour": (0, 0.9),
    "augment.ends": (0, 0.4),
    "augment.warp": (0, 2),
    "optimiser.weight_decay": (0, None),
    "optimiser.clip": (1e-6, None),
    "optimiser.warmup": (0, 1),
    "optimiser.blocks_per_step": (1, None),
    "gitdl.frame_steps": (0, None),
    "gitdl.video_steps": (0, None),
    "gitdl.lr": (0, None),
    "gitdl.videos": (1, None),
    "gitdl.frames": (2, None),
    "gitdl.skip_global": (1, None),
    "gitdl.skip_local": (1, None),
    "gitdl.sigma2": (1e-6, None),
    "gitdl.tau": (1e-6, None),
    "gitdl.hidden": (1, None),
    "gitdl.out": (1, None),
    "align.steps": (1, None),
    "align.lr": (0, None),
    "align.classes": (2, None),
    "align.clips": (2, None),
    "align.gamma": (1e-6, None),
    "align.margin": (0, None),
    "align.triplet_weight": (0, None),
    "align.score_weight": (0, None),
    "supervise.steps": (1, None),
    "supervise.lr": (0, None),
    "supervise.batch": (1, None),
    "rounds.count": (1, None),
    "rounds.video_steps": (1, None),
    "rounds.video_lr": (0, None),
    "rounds.video_label_share": (0, 1),
    "rounds.frame_rounds": (0, None),
    "rounds.frame_steps": (1, None),
    "rounds.frame_lr": (0, None),
    "rounds.frame_label_share": (0, 1),
    "label.threshold": (0, 1),
    "label.per_class_max": (0, None),
    "label.clips": (1, None),
    "label.min_coverage": (0, 1),
    "label.max_class_share": (0, 1),
    "label.min_agreement": (0, 1),
    "evaluate.clips": (1, None),
    "evaluate.pair_videos": (2, None),
    "scale.train_workers": (1, None),
    "scale.train_cpus": (0, None),
    "scale.train_gpus": (0, None),
    "scale.score_cpus": (0, None),
    "scale.score_gpus": (0, None),
    "scale.decode_workers": (1, None),
    "scale.score_workers": (1, None),
    "scale.cache_gib": (0, None),
    "scale.checkpoint_every": (1, None),
    "scale.steps_per_block": (1, None),
    "scale.segment_steps": (1, None),
    "scale.max_failures": (0, None),
    "scale.probe_deadline_s": (0.1, None),
    "scale.collective_timeout_s": (1, None),
    "scale.resources_deadline_s": (0, None),
    "scale.object_store_mib": (80, None),
}


# field -> what it may be; the command line knows this from the types, a recipe in a file must be told.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "methods": get_args(Method),
    "optimiser.precision": ("fp32", "bf16"),
    "rounds.targets": ("soft", "hard"),
    "label.mean": ("log_odds", "score"),
    "scale.zero_stage": (0, 1, 2, 3),
}


def _check_ranges(recipe: Recipe) -> None:
    for name, (low, high) in _RANGES.items():
        part, key = name.split(".")
        owner = recipe.data.rehearsal if part == "rehearsal" else getattr(recipe, part)
        if owner is None:
            continue
        value = getattr(owner, key)
        if not value >= low or value > (sys.float_info.max if high is None else high):
            bound = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise RecipeError(f"{'data.' if part == 'rehearsal' else ''}{name}: expected {bound}, got {value!r}")
    for name, choices in _CHOICES.items():
        part, _, key = name.rpartition(".")
        value: Any = getattr(getattr(recipe, part) if part else recipe, key)
        items = cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,)
        for item in items:
            if item not in choices:
                raise RecipeError(f"{name}: expected {', '.join(map(str, choices))}, got {item!r}")


def _check_across(recipe: Recipe) -> None:
    k, workers = recipe.optimiser.blocks_per_step, recipe.scale.train_workers
    if k % workers:
        raise RecipeError(
            f"scale.train_workers = {workers} must divide optimiser.blocks_per_step = {k}, since the workers share "
            f"the blocks of a step; use {k} blocks with a divisor of {k} workers, or another number of blocks"
        )
    if recipe.frames.crop > min(recipe.frames.height, recipe.frames.width):
        raise RecipeError(
            f"frames.crop = {recipe.frames.crop} is larger than the decoded frame, "
            f"frames.height x frames.width = {recipe.frames.height} x {recipe.frames.width}"
        )
    if not recipe.methods:
        raise RecipeError(f"methods: expected at least one of {', '.join(get_args(Method))}")
    if "{video_id}" not in recipe.data.videos:
        raise RecipeError(f"data.videos: expected a path with {{video_id}} in it, got {recipe.data.videos!r}")
    if recipe.align.triplet_weight == 0 and recipe.align.score_weight == 0:
        raise RecipeError("align.triplet_weight and align.score_weight are both 0: f_A would learn nothing")
    for part in ("frame", "video"):
        weights, sha = getattr(recipe.models, f"{part}_weights"), getattr(recipe.models, f"{part}_sha256")
        if bool(weights) != bool(sha):
            raise RecipeError(
                f"models.{part}_weights = {weights!r} and models.{part}_sha256 = {sha!r} belong together: "
                "give both (sha256sum of the file), or neither"
            )
    if recipe.data.rehearsal is not None:
        _check_rehearsal(recipe.data.rehearsal)


def _check_rehearsal(spec: Rehearsal) -> None:
    if len(set(spec.words)) < 2 or len(set(spec.words)) < len(spec.words):
        raise RecipeError(f"data.rehearsal.words: expected at least two classes, each once, got {spec.words}")
    wrong = [word for word in spec.words if not re.fullmatch("[TPWK]+-[UF]", word)]
    if wrong:
        raise RecipeError(f"data.rehearsal.words: expected letters of T, P, W, K and then -U or -F, got {wrong[0]!r}")
    if spec.size % 2:
        raise RecipeError(f"data.rehearsal.size: expected an even number of pixels, got {spec.size}")
