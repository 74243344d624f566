"""HMDB51, split 1: short clips of films; of no table of the paper."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public

HMDB51 = Published(
    name="HMDB51",
    train=3_570,
    test=1_530,
    classes=51,
    frames=95,
    data=Data(
        format="hmdb51",
        videos="videos/{video_id}.avi",
        train="testTrainMulti_7030_splits/*_test_split1.txt",
        test="",
        vocab="",
    ),
)


def hmdb51() -> Recipe:
    """python jobs/run.py hmdb51 --run s3://BUCKET/runs/hmdb51 --data.root s3://BUCKET/hmdb51

    40 % of the labels of each class. Predicted by arithmetic and never run: 34 min on 8 GPUs.
    """
    return public("hmdb51", HMDB51, labels=0.4)
