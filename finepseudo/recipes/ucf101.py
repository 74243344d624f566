"""UCF101, split 1: actions of daily life and sports; of no table of the paper."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public

UCF101 = Published(
    name="UCF101",
    train=9_537,
    test=3_783,
    classes=101,
    frames=186,
    data=Data(
        format="ucf101",
        videos="UCF-101/{video_id}.avi",
        train="ucfTrainTestlist/trainlist01.txt",
        test="ucfTrainTestlist/testlist01.txt",
        vocab="ucfTrainTestlist/classInd.txt",
    ),
)


def ucf101() -> Recipe:
    """python jobs/run.py ucf101 --run s3://BUCKET/runs/ucf101 --data.root s3://BUCKET/ucf101

    10 % of the labels of each class. Predicted by arithmetic and never run: 1.4 h on 8 GPUs.
    """
    return public("ucf101", UCF101, labels=0.1)
