"""What the recipes of public data sets share: sizes as published, and the first guess that follows from them by rule.

Passes fall with the root of the size: a set four times as large is seen half as often, in twice as many steps.  [C]

    rows(n) = 100 sqrt(1000 n)      clips that one training reads; n clips that it is about, 100 passes over 1,000
    steps   = rows(n) / clips of an optimiser step

n is all training clips for pre-training, the labelled ones for alignment and supervision, the others for each of two
rounds. Nothing of it was tuned, and no machine has run it: 28 labelled clips of the rehearsal set are seen as often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finepseudo.recipe import Align, Data, Frames, Gitdl, Models, Optimiser, Recipe, Rounds, Scale, Split, Supervise

LARGE = 100_000  # training clips from which a recipe asks for four machines instead of one


@dataclass(frozen=True, kw_only=True)
class Published:
    """A public data set: the files that make it, and how much is in them."""

    name: str  # for people
    train: int  # clips
    test: int
    classes: int
    frames: int  # of a typical clip
    data: Data


def rows(clips: int) -> int:
    """Clips that a training about so many clips reads: see the module."""
    return round(100 * math.sqrt(1000 * clips))


def public(name: str, published: Published, *, labels: float) -> Recipe:
    """f_A on a ResNet-18, f_E as R(2+1)D-18 (the paper's main tables), 112 x 112 pixels, 16 frames.

    One machine of 8 GPUs: two trainings on 2 each, 4 scorers. From LARGE on four of them, and twice the clips a step.
    """
    labelled = round(labels * published.train)
    large = published.train >= LARGE
    blocks = 8 if large else 4

    def steps(clips: int, block: int) -> int:
        return math.ceil(rows(clips) / (blocks * block))

    pretrain, supervise = steps(published.train, 16), steps(labelled, 16)
    return Recipe(
        name=name,
        data=published.data,
        split=Split(label_fraction=labels),
        models=Models(frame="vtn_resnet18", video="r2plus1d_18", video_options={"temporal_stride_1": "true"}),
        frames=Frames(height=128, width=171, crop=112, align=16, video=16),
        optimiser=Optimiser(precision="bf16", blocks_per_step=blocks),
        gitdl=Gitdl(frame_steps=pretrain, video_steps=pretrain, videos=16),
        align=Align(steps=steps(labelled, 32), classes=8, clips=4),
        supervise=Supervise(steps=supervise, batch=16),
        rounds=Rounds(count=2, video_steps=steps(published.train - labelled, 16)),
        scale=eight_gpus(4 if large else 1),
    )


def public_vit(name: str, published: Published, *, labels: float) -> Recipe:
    """AIM on CLIP's ViT-B/16 as f_E (the paper's second table), the same ViT per frame in f_A [C]; 224 x 224 pixels.

    All else as in `public`, but for what suits weights that are there already: f_E is not pre-trained, rates are lower
    and fall from layer to layer of f_A, layers are dropped [A: .2 of AIM, .75 of ViT-B; C: the other numbers].
    """
    recipe = public(name, published, labels=labels)
    return replace(
        recipe,
        models=Models(
            frame="vtn_clip_vit_b16",
            frame_options={"drop_path": "0.1"},
            video="aim_vit_b16",
            video_options={"drop_path": "0.2"},
        ),
        frames=replace(recipe.frames, height=256, width=342, crop=224),
        optimiser=replace(recipe.optimiser, frame_layer_decay=0.75),
        gitdl=replace(recipe.gitdl, video_steps=0, lr=1e-4),
        align=replace(recipe.align, lr=1e-4),
        supervise=replace(recipe.supervise, lr=3e-4),
        rounds=replace(recipe.rounds, video_lr=2e-4, frame_lr=5e-5),
        scale=replace(recipe.scale, recompute=("frame", "video")),
    )


def eight_gpus(machines: int) -> Scale:
    """So many machines of 8 GPUs and some 64 processors: half the GPUs train, half score."""
    return Scale(
        train_workers=2 * machines, train_gpus=1, score_workers=4 * machines, score_gpus=1,
        decode_workers=16 * machines, cache_gib=64.0,
    )  # fmt: skip
