"""What the unit tests share: tiny video files, and a disk that is soon full."""

import hashlib
import os
import subprocess

import numpy as np
import pytest
from hypothesis import settings

from finepseudo import rehearsal
from finepseudo.recipe import Rehearsal

settings.register_profile("untimed", deadline=None)  # a busy machine is no error
settings.load_profile("untimed")

SPEC = Rehearsal(words=("TW-U", "TP-F"), train_per_class=3, test_per_class=1, size=48, look=0)


@pytest.fixture(scope="session")
def movie():
    """An H.264 file of 48 x 48 pixels."""
    return rehearsal.video(SPEC, "train", rehearsal.video_ids(SPEC, "train")[0][0])[0]


@pytest.fixture
def video_row():
    """Writes frames as a file, and gives the plan row of it."""

    def write(path, frames_FHWC, frames_0=(0, 2, 2, 5)):
        data = rehearsal.encode_mp4(np.ascontiguousarray(frames_FHWC), 25)
        path.write_bytes(data)
        count, height, width, _ = frames_FHWC.shape
        row = {
            "path": str(path)[1:],
            "sha256": hashlib.sha256(data).hexdigest(),
            "num_frames": count,
            "access": "decord",
            "start": 0,
            "file_frames": count,
        }
        return {**row, "height": height, "width": width, "frames_0": list(frames_0), "frames_1": None}

    return write


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def few_layers(monkeypatch):
    """The video Transformers with two narrow layers; all else is as it is."""
    from finepseudo.models import aim, hub

    for kind in (hub.VideoMAEB16, hub.TimeSformerB16, hub.VJEPA2L16):
        narrow = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        narrow["num_pooler_layers"] = 1
        monkeypatch.setattr(kind, "shape", {name: narrow[name] for name in kind.shape})
    monkeypatch.setattr(aim.AIMViTB16, "shape", {"width": 48, "heads": 3, "layers": 2})
