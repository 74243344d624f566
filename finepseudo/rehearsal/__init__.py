"""The rehearsal data set: generated, fine-grained actions of one gymnast, as real H.264 files with exact truth.

From an id to its file: ids -> motion -> figure -> scene -> render -> files.
"""

from finepseudo.rehearsal.files import annotations, encode_mp4, video
from finepseudo.rehearsal.ids import SPLITS, letters, video_ids
from finepseudo.rehearsal.motion import PHASES, Truth, through_action, truth
from finepseudo.rehearsal.render import clip, nuisance
