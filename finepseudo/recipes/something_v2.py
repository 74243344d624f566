"""Something-Something V2: gestures of 174 classes."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public

SOMETHING_V2 = Published(
    name="Something-Something V2",
    train=168_913,
    test=24_777,
    classes=174,
    frames=48,
    data=Data(
        format="something_v2",
        videos="20bn-something-something-v2/{video_id}.webm",
        train="something-something-v2-train.json",
        test="something-something-v2-validation.json",
        vocab="something-something-v2-labels.json",
    ),
)


def ssv2_1pct() -> Recipe:
    """python jobs/run.py ssv2_1pct --run s3://BUCKET/runs/ssv2_1pct --data.root s3://BUCKET/something-v2

    1 % of the labels of each class. Predicted by arithmetic and never run: 1.0 h on 32 GPUs.
    The paper has figures of this set, which are neither repeated nor reproduced here.
    """
    return public("ssv2_1pct", SOMETHING_V2, labels=0.01)


def ssv2_10pct() -> Recipe:
    """python jobs/run.py ssv2_10pct --run s3://BUCKET/runs/ssv2_10pct --data.root s3://BUCKET/something-v2

    10 % of the labels of each class. Predicted by arithmetic and never run: 1.0 h on 32 GPUs.
    The paper has figures of this set, which are neither repeated nor reproduced here.
    """
    return public("ssv2_10pct", SOMETHING_V2, labels=0.1)
