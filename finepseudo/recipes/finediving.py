"""FineDiving: dives of 52 types as folders of frames, some types with one clip."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public

FINEDIVING = Published(
    name="FineDiving",
    train=2_251,
    test=749,
    classes=52,
    frames=104,
    data=Data(
        format="finediving",
        videos="FINADiving_MTL_256s/{video_id}",
        train="train_split.pkl",
        test="test_split.pkl",
        vocab="",
    ),
)


def finediving_5pct() -> Recipe:
    """python jobs/run.py finediving_5pct --run s3://BUCKET/runs/finediving_5pct --data.root s3://BUCKET/finediving

    5 % of the labels of each class. Predicted by arithmetic and never run: 27 min on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 28.4 % (reported by the paper, not reproduced here).
    """
    return public("finediving_5pct", FINEDIVING, labels=0.05)
