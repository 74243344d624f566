"""Public data sets as they are published, for encoders of 112 x 112 pixels; `--data.root` says where a set lies.

No machine has run one of these: steps and rates are first guesses, shared by all. By multiply-adds of f_E (960,000
clips of 16 frames), a run takes hours of one H100, if decoding keeps up; `jobs/prepare.py` reads all files once before.
"""

from __future__ import annotations

from finepseudo.recipe import Align, Data, Frames, Gitdl, Models, Optimiser, Recipe, Rounds, Split, Supervise


def _recipe(name: str, form: str, videos: str, train: str, test: str, vocab: str, *, labelled: float) -> Recipe:
    return Recipe(
        name=name,
        data=Data(format=form, videos=videos, train=train, test=test, vocab=vocab),
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
    train, test, vocab = "Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json"
    return _recipe("diving48", "diving48", "rgb/{video_id}.mp4", train, test, vocab, labelled=0.1)


def _finegym(name: str) -> Recipe:
    train, test, vocab = f"{name}_train_element_v1.1.txt", f"{name}_val_element.txt", f"{name}_categories.txt"
    return _recipe(f"fine{name}", "finegym", "videos/{video_id}.*", train, test, vocab, labelled=0.1)


def finegym99() -> Recipe:
    """Gym99, elements cut out: 26,320 + 8,521 clips, 10 % labelled. Never run.

    Whole videos: `--data.format finegym_whole`, with the times beside the lists.
    """
    return _finegym("gym99")


def finegym288() -> Recipe:
    """Gym288, elements cut out: 29,334 + 9,646 clips, 2 to 1,623 of a class, 10 % labelled. Never run."""
    return _finegym("gym288")


def finediving() -> Recipe:
    """FineDiving: 2,251 + 749 dives of 52 types, as folders of frames, 20 % labelled. Never run."""
    videos, train, test = "FINADiving_MTL_256s/{video_id}", "train_split.pkl", "test_split.pkl"
    return _recipe("finediving", "finediving", videos, train, test, "", labelled=0.2)


def kinetics400() -> Recipe:
    """Kinetics-400: 246,534 + 19,906 rows, of which thousands have no file any more, 1 % labelled. Never run."""
    videos = "videos/**/{video_id}.*"
    return _recipe("kinetics400", "kinetics400", videos, "train.csv", "val.csv", "", labelled=0.01)


def something_v2() -> Recipe:
    """Something-Something V2: 168,913 + 24,777 clips of 174 classes, 5 % labelled. Never run."""
    train, test, vocab = (f"something-something-v2-{part}.json" for part in ("train", "validation", "labels"))
    videos = "20bn-something-something-v2/{video_id}.webm"
    return _recipe("something_v2", "something_v2", videos, train, test, vocab, labelled=0.05)


def ucf101() -> Recipe:
    """UCF101, split 1: 9,537 + 3,783 clips, 10 % labelled. Never run."""
    train, test, vocab = (f"ucfTrainTestlist/{name}.txt" for name in ("trainlist01", "testlist01", "classInd"))
    return _recipe("ucf101", "ucf101", "UCF-101/{video_id}.avi", train, test, vocab, labelled=0.1)


def hmdb51() -> Recipe:
    """HMDB51, split 1: 3,570 + 1,530 clips of 51 lists, 40 % labelled. Never run."""
    train = "testTrainMulti_7030_splits/*_test_split1.txt"
    return _recipe("hmdb51", "hmdb51", "videos/{video_id}.avi", train, "", "", labelled=0.4)
