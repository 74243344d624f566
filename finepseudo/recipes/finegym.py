"""FineGym: elements of gymnastics, 99 or 288 classes, of 2 to 1,623 clips in the larger one."""

from __future__ import annotations

from finepseudo.recipe import Data, Recipe
from finepseudo.recipes.published import Published, public


def _gym(classes: int, train: int, test: int) -> Published:
    """Elements, cut out as files of their own; whole videos: `--data.format finegym_whole`, times beside the lists."""
    name = f"gym{classes}"
    data = Data(
        format="finegym",
        videos="videos/{video_id}.*",
        train=f"{name}_train_element_v1.1.txt",
        test=f"{name}_val_element.txt",
        vocab=f"{name}_categories.txt",
    )
    return Published(name=f"Gym{classes}", train=train, test=test, classes=classes, frames=32, data=data)


GYM99 = _gym(99, 26_320, 8_521)
GYM288 = _gym(288, 29_334, 9_646)


def gym99_5pct() -> Recipe:
    """python jobs/run.py gym99_5pct --run s3://BUCKET/runs/gym99_5pct --data.root s3://BUCKET/finegym

    5 % of the labels of each class. Predicted by arithmetic and never run: 1.5 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 49.2 % (reported by the paper, not reproduced here).
    """
    return public("gym99_5pct", GYM99, labels=0.05)


def gym99_10pct() -> Recipe:
    """python jobs/run.py gym99_10pct --run s3://BUCKET/runs/gym99_10pct --data.root s3://BUCKET/finegym

    10 % of the labels of each class. Predicted by arithmetic and never run: 1.5 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 69.9 % (reported by the paper, not reproduced here).
    """
    return public("gym99_10pct", GYM99, labels=0.1)


def gym288_5pct() -> Recipe:
    """python jobs/run.py gym288_5pct --run s3://BUCKET/runs/gym288_5pct --data.root s3://BUCKET/finegym

    5 % of the labels of each class. Predicted by arithmetic and never run: 1.6 h on 8 GPUs.
    Top-1 of the paper with R(2+1)D-18: 41.7 % (reported by the paper, not reproduced here).
    """
    return public("gym288_5pct", GYM288, labels=0.05)
