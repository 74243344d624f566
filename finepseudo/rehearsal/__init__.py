"""The rehearsal data set: generated, fine-grained actions of one gymnast, as real H.264 files with exact truth.

From an id to its file: levels -> ids -> motion -> figure -> scene -> render -> files.
"""

from finepseudo.rehearsal.files import annotations, encode_mp4, video
from finepseudo.rehearsal.ids import SPLITS, letters, video_ids
from finepseudo.rehearsal.motion import PHASES, Truth, truth
from finepseudo.rehearsal.render import Clip, clip, nuisance

__all__ = [
    "PHASES",
    "SPLITS",
    "Clip",
    "Truth",
    "annotations",
    "clip",
    "encode_mp4",
    "letters",
    "nuisance",
    "truth",
    "video",
    "video_ids",
]
