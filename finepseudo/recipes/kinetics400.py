"""Kinetics-400: clips of 10 seconds; of 246,534 training rows some 240,258 have a file, the others are counted."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public

KINETICS400 = Published(
    name="Kinetics-400",
    train=240_258,
    test=19_906,
    classes=400,
    frames=300,
    data=Data(format="kinetics400", videos="videos/**/{video_id}.*", train="train.csv", test="val.csv", vocab=""),
)


def k400_1pct() -> Recipe:
    """python jobs/run.py k400_1pct --run s3://BUCKET/runs/k400_1pct --data.root s3://BUCKET/kinetics400

    1 % of the labels of each class. Predicted by arithmetic and never run: 5.8 h on 32 GPUs.
    The paper has figures of this set, which are neither repeated nor reproduced here.
    """
    return public("k400_1pct", KINETICS400, labels=0.01)


def k400_10pct() -> Recipe:
    """python jobs/run.py k400_10pct --run s3://BUCKET/runs/k400_10pct --data.root s3://BUCKET/kinetics400

    10 % of the labels of each class. Predicted by arithmetic and never run: 7.0 h on 32 GPUs.
    The paper has figures of this set, which are neither repeated nor reproduced here.
    """
    return public("k400_10pct", KINETICS400, labels=0.1)
