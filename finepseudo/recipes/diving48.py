"""Diving48 V2: dives of 48 classes, one of which has no clip."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public, public_vit

DIVING48 = Published(
    name="Diving48 V2",
    train=15_027,
    test=1_970,
    classes=48,
    frames=144,
    data=Data(
        format="diving48",
        videos="rgb/{video_id}.mp4",
        train="Diving48_V2_train.json",
        test="Diving48_V2_test.json",
        vocab="Diving48_vocab.json",
    ),
)


def diving48_5pct() -> Recipe:
    """python jobs/run.py diving48_5pct --run s3://BUCKET/runs/diving48_5pct --data.root s3://BUCKET/diving48

    5 % of the labels of each class. Predicted by arithmetic and never run: 1.6 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 20.9 % (reported by the paper, not reproduced here).
    """
    return public("diving48_5pct", DIVING48, labels=0.05)


def diving48_10pct() -> Recipe:
    """python jobs/run.py diving48_10pct --run s3://BUCKET/runs/diving48_10pct --data.root s3://BUCKET/diving48

    10 % of the labels of each class. Predicted by arithmetic and never run: 1.6 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 37.6 % (reported by the paper, not reproduced here).
    """
    return public("diving48_10pct", DIVING48, labels=0.1)


def diving48_20pct() -> Recipe:
    """python jobs/run.py diving48_20pct --run s3://BUCKET/runs/diving48_20pct --data.root s3://BUCKET/diving48

    20 % of the labels of each class. Predicted by arithmetic and never run: 1.6 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 60.4 % (reported by the paper, not reproduced here).
    """
    return public("diving48_20pct", DIVING48, labels=0.2)


def diving48_5pct_vit() -> Recipe:
    """python jobs/run.py diving48_5pct_vit --run s3://BUCKET/runs/diving48_5pct_vit --data.root s3://BUCKET/diving48

    5 % of the labels of each class. Predicted by arithmetic and never run: 6.1 h on 8 GPUs.
    Top-1 of the paper with AIM on CLIP's ViT-B: 43.0 % (reported by the paper, not reproduced here).

    Both encoders start from CLIP's weights: add the options that jobs/import_weights.py prints for vtn_clip_vit_b16 and
    for aim_vit_b16.
    """
    return public_vit("diving48_5pct_vit", DIVING48, labels=0.05)


def diving48_10pct_vit() -> Recipe:
    """python jobs/run.py diving48_10pct_vit --run s3://BUCKET/runs/diving48_10pct_vit --data.root s3://BUCKET/diving48

    10 % of the labels of each class. Predicted by arithmetic and never run: 6.1 h on 8 GPUs.
    Top-1 of the paper with AIM on CLIP's ViT-B: 60.8 % (reported by the paper, not reproduced here).

    Both encoders start from CLIP's weights: add the options that jobs/import_weights.py prints for vtn_clip_vit_b16 and
    for aim_vit_b16.
    """
    return public_vit("diving48_10pct_vit", DIVING48, labels=0.1)


def diving48_20pct_vit() -> Recipe:
    """python jobs/run.py diving48_20pct_vit --run s3://BUCKET/runs/diving48_20pct_vit --data.root s3://BUCKET/diving48

    20 % of the labels of each class. Predicted by arithmetic and never run: 6.1 h on 8 GPUs.
    Top-1 of the paper with AIM on CLIP's ViT-B: 80.0 % (reported by the paper, not reproduced here).

    Both encoders start from CLIP's weights: add the options that jobs/import_weights.py prints for vtn_clip_vit_b16 and
    for aim_vit_b16.
    """
    return public_vit("diving48_20pct_vit", DIVING48, labels=0.2)
