"""Public data sets as they are published, for encoders of 112 x 112 pixels; `--data.root` says where a set lies.

No machine has run one of these: steps and rates are first guesses, shared by all. By multiply-adds of f_E (960,000
clips of 16 frames), a run takes hours of one H100, if decoding keeps up; `jobs/prepare.py` reads all files once before.
"""

from __future__ import annotations

from finepseudo.recipe import Align, Data, Frames, Gitdl, Models, Optimiser, Recipe, Rounds, Split, Supervise


def _recipe(name: str, data: Data, *, labelled: float) -> Recipe:
    return Recipe(
        name=name,
        data=data,
        split=Split(label_fraction=labelled),
        models=Models(frame="vtn_resnet18", video="r2plus1d_18", video_options={"temporal_stride_1": "true"}),
        frames=Frames(height=128, width=171, crop=112, align=16, video=16),
        optimiser=Optimiser(precision="bf16"),
        gitdl=Gitdl(frame_steps=10_000, video_steps=5_000),
        align=Align(steps=5_000),
        supervise=Supervise(steps=10_000),
        rounds=Rounds(count=2, video_steps=10_000),
    )


def diving48() -> Recipe:
    """Diving48 V2: 15,027 + 1,970 dives of 48 classes (one without a clip), 10 % labelled. Never run."""
    splits = {"train": "Diving48_V2_train.json", "test": "Diving48_V2_test.json", "vocab": "Diving48_vocab.json"}
    return _recipe("diving48", Data(format="diving48", videos="rgb/{video_id}.mp4", **splits), labelled=0.1)


def _finegym(classes: int) -> Recipe:
    data = Data(
        format="finegym",
        videos="videos/{video_id}.*",
        train=f"gym{classes}_train_element_v1.1.txt",
        test=f"gym{classes}_val_element.txt",
        vocab=f"gym{classes}_categories.txt",
    )
    return _recipe(f"finegym{classes}", data, labelled=0.1)


def finegym99() -> Recipe:
    """Gym99, elements cut out: 26,320 + 8,521 clips, 10 % labelled. Never run.

    Whole videos: `--data.format finegym_whole`, with the times beside the lists.
    """
    return _finegym(99)


def finegym288() -> Recipe:
    """Gym288, elements cut out: 29,334 + 9,646 clips, 2 to 1,623 of a class, 10 % labelled. Never run."""
    return _finegym(288)


def finediving() -> Recipe:
    """FineDiving: 2,251 + 749 dives of 52 types, as folders of frames, 20 % labelled. Never run."""
    splits = {"train": "train_split.pkl", "test": "test_split.pkl", "vocab": ""}
    data = Data(format="finediving", videos="FINADiving_MTL_256s/{video_id}", **splits)
    return _recipe("finediving", data, labelled=0.2)


def kinetics400() -> Recipe:
    """Kinetics-400: 246,534 + 19,906 rows, of which thousands have no file any more, 1 % labelled. Never run."""
    data = Data(format="kinetics400", videos="videos/**/{video_id}.*", train="train.csv", test="val.csv", vocab="")
    return _recipe("kinetics400", data, labelled=0.01)


def something_v2() -> Recipe:
    """Something-Something V2: 168,913 + 24,777 clips of 174 classes, 5 % labelled. Never run."""
    part = "something-something-v2-"
    splits = {"train": f"{part}train.json", "test": f"{part}validation.json", "vocab": f"{part}labels.json"}
    data = Data(format="something_v2", videos="20bn-something-something-v2/{video_id}.webm", **splits)
    return _recipe("something_v2", data, labelled=0.05)


def ucf101() -> Recipe:
    """UCF101, split 1: 9,537 + 3,783 clips, 10 % labelled. Never run."""
    folder = "ucfTrainTestlist"
    splits = {
        "train": f"{folder}/trainlist01.txt",
        "test": f"{folder}/testlist01.txt",
        "vocab": f"{folder}/classInd.txt",
    }
    return _recipe("ucf101", Data(format="ucf101", videos="UCF-101/{video_id}.avi", **splits), labelled=0.1)


def hmdb51() -> Recipe:
    """HMDB51, split 1: 3,570 + 1,530 clips of 51 lists, 40 % labelled. Never run."""
    splits = {"train": "testTrainMulti_7030_splits/*_test_split1.txt", "test": "", "vocab": ""}
    return _recipe("hmdb51", Data(format="hmdb51", videos="videos/{video_id}.avi", **splits), labelled=0.4)
