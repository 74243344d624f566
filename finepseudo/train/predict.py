"""Inference with committed snapshots: the one path for gallery, labels, evaluation and prediction.

Axes: B rows, V views of a video, N videos, M nearest gallery members, T frames, D embedding, K classes.
"""

from __future__ import annotations

import functools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from finepseudo.align.contrast import temporal_similarity
from finepseudo.align.gallery import Gallery
from finepseudo.align.head import ScoreHead
from finepseudo.align.score import ClassScorer
from finepseudo.align.softdtw import aligned, cosine_cost
from finepseudo.data import features
from finepseudo.data.transforms import centre
from finepseudo.errors import WeightsError
from finepseudo.models import weights
from finepseudo.models.encoders import build
from finepseudo.models.table import Part, Preprocessing, Role
from finepseudo.recipe import Recipe
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store, located
from finepseudo.train.initial import preprocessing_of

Columns = dict[str, np.ndarray]
T = TypeVar("T")

# Columns of a pass: a prefix, and the encoder's name.
_EMBEDDINGS, _SBAR, _LOGITS, _POOLED, _SIMILARITY = "embeddings/", "sbar/", "logits/", "pooled/", "similarity/"
_MEMBERS, _ALIGNABILITY, _PATH = "members/", "alignability/", "path/"
_NOTES = "notes"  # of a part, beside its columns: seconds, and reasons of what could not be decoded
_STORED, _SHA256 = "stored", "sha256"  # features of frames, which become a table of their own; its digest

NEAREST = 5  # gallery members that a label names
PARTS_FORM = 2  # raised when parts are written in another form: those of an older version are not taken for ours
READ_AHEAD = 16  # parts of a pass
NOTES_BYTES = 4096  # enough for the notes of most parts
FRAMES = 256  # that a frozen backbone sees at a time
HIGHEST = 65504.0  # of fp16


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass over videos runs: encoders by name, each by the URI of its snapshot folder."""

    frame: Mapping[str, str] = field(default_factory=dict[str, str])
    """f_A: class means against its gallery, or embeddings where it has none."""
    video: Mapping[str, str] = field(default_factory=dict[str, str])  # f_E: logits
    pooled: Mapping[str, str] = field(default_factory=dict[str, str])
    """f_E: the mean over time of its features; of no snapshot: of the stored features that it would see."""
    similar: Mapping[str, str] = field(default_factory=dict[str, str])  # f_E: temporal similarity of its features
    frozen: str = ""  # snapshot whose backbone makes features of frames, which are stored beside the parts
    galleries: Mapping[str, Gallery] = field(default_factory=dict[str, Gallery])  # by name of an f_A
    clips: int = 1  # V, clips of a video, one after the other; class means and logits are averaged over them
    nearest: int = 0  # M, members of its gallery with which a video's first view aligns best, of every f_A that has one
    paths: bool = False  # also which frames of the nearest one are aligned with those of the view

    def lineage(self) -> dict[str, Any]:
        """What decides the results: digests of weights and galleries."""
        parts = (*get_args(Part), *(name for name in ("pooled", "similar") if getattr(self, name)))
        weights = {part: {name: uri and _digest(uri) for name, uri in getattr(self, part).items()} for part in parts}
        frozen = {"frozen": _digest(self.frozen)} if self.frozen else {}
        return {
            **weights,
            **frozen,
            **({"nearest": self.nearest, "paths": self.paths} if self.nearest else {}),
            "galleries": {name: g.digest for name, g in self.galleries.items()},
            "clips": self.clips,
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one pass, read from its committed parts in the order of the plan; nobody holds them all."""

    run: Store
    folder: str
    parts: int  # a block of the plan each
    block_videos: int
    clip_N: np.ndarray  # what was asked for, by the rows of the manifest
    seconds: Mapping[str, float]
    rejected: Mapping[int, str]  # reasons, by the row of the manifest, of what could not be decoded

    def batches(self, size: int = 1 << 14, numbers: Sequence[int] | None = None) -> Iterator[Columns]:
        """Column `clip`, the row of the manifest, and those of `Predictor`, of some `size` decoded videos at a time.

        Args:
            numbers: of the parts to read; all, if it is not given.
        """
        numbers = range(self.parts) if numbers is None else numbers
        held: list[Columns] = []
        count = 0
        for number, (columns, errors) in read_ahead(lambda number: read_part(self.run, self.folder, number), numbers):
            held.append(self._decoded(number, columns, errors))
            count += len(held[-1]["clip"])
            if number == numbers[-1] or count >= size:
                yield {key: np.concatenate([part[key] for part in held]) for key in held[0]}
                held, count = [], 0

    def columns(self) -> Columns:
        """All at once, in this process's memory."""
        return self.of(self.clip_N)

    def of(self, clip_N: np.ndarray) -> Columns:
        """Those of some clips, by their rows of the manifest, in the order of the plan; only their parts are read."""
        asked = np.flatnonzero(np.isin(self.clip_N, clip_N)) // self.block_videos
        kept: list[Columns] = []
        for batch in self.batches(numbers=np.unique(asked).tolist() or [0]):
            here_N = np.isin(batch["clip"], clip_N)
            kept.append({key: value[here_N] for key, value in batch.items()})
        return {key: np.concatenate([part[key] for part in kept]) for key in kept[0]}

    def _decoded(self, number: int, columns: Columns, errors: Mapping[int, str]) -> Columns:
        first = number * self.block_videos
        clip_N = self.clip_N[first : first + self.block_videos]
        good_N = np.array([place not in errors for place in range(len(clip_N))])
        return {"clip": clip_N[good_N], **{key: value[good_N] for key, value in columns.items()}}


def stored_sha256(columns: Columns) -> str:
    """Of the table of features that belongs to a part."""
    return columns[_SHA256].tobytes().hex()


def sbar(columns: Columns, name: str) -> Tensor:
    """Class means (N,K) by one f_A and its gallery."""
    return torch.from_numpy(columns[_SBAR + name])


def nearest(columns: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the gallery members that align best with the videos, by one f_A, and their alignability; both (N,M)."""
    return columns[_MEMBERS + name], columns[_ALIGNABILITY + name]


def paths(columns: Columns, name: str) -> np.ndarray:
    """Of each frame of the first view, the frame of the nearest gallery member that is aligned with it, (N,T)."""
    return columns[_PATH + name]


def logits(columns: Columns, name: str) -> Tensor:
    """Of one f_E, (N,K)."""
    return torch.from_numpy(columns[_LOGITS + name])


def pooled(columns: Columns, name: str) -> np.ndarray:
    """Mean features of one f_E, (N,F)."""
    return columns[_POOLED + name]


def similarity(columns: Columns, name: str) -> Tensor:
    """Of the moments of each video, by the features of one f_E, (N,)."""
    return torch.from_numpy(columns[_SIMILARITY + name])


def embeddings(columns: Columns, name: str) -> Tensor:
    """Of the first view of each video, by one f_A, (N,T,D)."""
    return torch.from_numpy(columns[_EMBEDDINGS + name])


def part_name(number: int) -> str:
    """Of the file with the results of a block."""
    return f"{number:07d}.safetensors"


def read_part(run: Store, folder: str, number: int) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Columns of all videos of a block, and the reasons of those that could not be decoded, by their place in it."""
    data = run.read(f"{folder}/{part_name(number)}")
    return safetensors.numpy.load(data), _notes(data)[1]


def read_notes(run: Store, folder: str, number: int) -> tuple[dict[str, float], dict[int, str]]:
    """Of a part: seconds by kind, and reasons as `read_part` has them. Its columns, which are far more, stay there."""
    path, size = f"{folder}/{part_name(number)}", NOTES_BYTES
    start = run.read_start(path, size)
    if (size := _header_end(start)) > len(start):
        start = run.read_start(path, size)
    return _notes(start)


def _header_end(data: bytes) -> int:
    """Of a safetensors file: eight bytes say how long the JSON behind them is."""
    return 8 + int.from_bytes(data[:8], "little")


def _notes(data: bytes) -> tuple[dict[str, float], dict[int, str]]:
    notes = json.loads(json.loads(data[8 : _header_end(data)])["__metadata__"][_NOTES])
    return notes["seconds"], {int(place): text for place, text in notes["errors"].items()}


def read_ahead(read: Callable[[int], T], numbers: Iterable[int]) -> Iterator[tuple[int, T]]:
    """What `read` gives for each number, in their order.

    Some are under way: an object store answers in some 20 ms, which for 200,000 parts one after the other is an hour.
    """
    with ThreadPoolExecutor(READ_AHEAD) as readers:
        ahead = deque[tuple[int, Future[T]]]()
        for number in numbers:
            ahead.append((number, readers.submit(read, number)))
            if len(ahead) == READ_AHEAD:
                first, found = ahead.popleft()
                yield first, found.result()
        for number, found in ahead:
            yield number, found.result()


class Predictor:
    def __init__(self, recipe: Recipe, num_classes: int, what: Pass, device: torch.device) -> None:
        self.recipe, self.what, self.views, self.device = recipe, what, what.clips, device
        self.frame = {name: self._load(uri, "frame", num_classes) for name, uri in what.frame.items()}
        self.video = {name: self._load(uri, "video", num_classes)[0] for name, uri in what.video.items()}
        self.pooled: dict[str, Any] = {
            name: self._load(uri, "video", num_classes)[0] if uri else None for name, uri in what.pooled.items()
        }
        self.similar = {name: self._load(uri, "video", num_classes)[0] for name, uri in what.similar.items()}
        self.frozen = self._load(what.frozen, "frozen", num_classes)[0] if what.frozen else None
        self.scorers = {name: self._scorer(name, gallery) for name, gallery in what.galleries.items()}

    def write(self, columns: Mapping[str, np.ndarray], run: Store, folder: str, number: int) -> int:
        """Results of one block of decoded rows, whole videos with their views one after the other, as a committed part.

        Returns the number of videos. A part is one file, which is there whole or not at all.
        """
        began = time.monotonic()
        found = self(columns["clip_0"], columns.get("clip_1"))
        if self.frozen is not None:
            digest = features.write(run, folder, number, found.pop(_STORED))
            found[_SHA256] = np.frombuffer(digest, np.uint8)
        # A video is as good as the worst of its views.
        errors_NV = columns["error"].reshape(-1, self.views)
        errors = {place: str(max(texts)) for place, texts in enumerate(errors_NV) if any(texts)}
        seconds = {"decode": float(columns["decode_s"].sum()), "predict": time.monotonic() - began}
        notes = {_NOTES: json.dumps({"seconds": seconds, "errors": errors})}
        run.write(f"{folder}/{part_name(number)}", safetensors.numpy.save(found, notes))
        return len(errors_NV)

    @torch.inference_mode()
    def __call__(self, clip_0: np.ndarray, clip_1: np.ndarray | None) -> dict[str, np.ndarray]:
        """Results for N videos from B = N V rows, the views of a video one after the other.

        Args:
            clip_0, clip_1: uint8 clips BTHWC of f_A, or of the frozen backbone, and of f_E; or stored features BTC.
        Returns float32 columns by name of an encoder: embeddings (N,T,D) of the first view, its nearest gallery members
        (N,M), int32, and their alignability; class means (N,K), logits (N,K) and mean features (N,F) averaged over the
        views; temporal similarities (N,) over the moments of all views.
        """
        found: dict[str, Tensor] = {}
        if self.frame:
            clips = functools.cache(functools.partial(self._clips, clip_0))
            for name, (encoder, _) in self.frame.items():
                emb_BTD = encoder(clips(encoder.preprocessing)).float()
                if name not in self.scorers:
                    found[_EMBEDDINGS + name] = emb_BTD[:: self.views]
                    continue
                found[_SBAR + name] = self.scorers[name](emb_BTD).unflatten(0, (-1, self.views)).mean(1)
                if self.what.nearest:
                    found |= self._near(name, emb_BTD[:: self.views])
        if self.frozen is not None:
            found[_STORED] = self._frame_features(self.frozen, clip_0)
        clips = functools.cache(functools.partial(self._clips, clip_1))
        for name, encoder in self.video.items():
            logits_BK = encoder(clips(encoder.preprocessing)).float()
            found[_LOGITS + name] = logits_BK.unflatten(0, (-1, self.views)).mean(1)
        for name, encoder in self.pooled.items():
            feat_BTF = encoder.time_features(clips(encoder.preprocessing)) if encoder else clips(Preprocessing())
            feat_BF = feat_BTF.float().mean(1)
            found[_POOLED + name] = feat_BF.unflatten(0, (-1, self.views)).mean(1)
        for name, encoder in self.similar.items():
            feat_BTF = encoder.time_features(clips(encoder.preprocessing)).float()
            found[_SIMILARITY + name] = temporal_similarity(feat_BTF.unflatten(0, (-1, self.views)).flatten(1, 2))
        # safetensors writes the memory of an array, whatever its strides.
        return {name: value.cpu().contiguous().numpy() for name, value in found.items()}

    @torch.inference_mode()
    def embed(self, name: str, clip_BTHWC: np.ndarray) -> Tensor:
        encoder = self.frame[name][0]
        return encoder(self._clips(clip_BTHWC, encoder.preprocessing)).float()

    @torch.inference_mode()
    def _frame_features(self, encoder: Any, clip_BTHWC: np.ndarray) -> Tensor:
        """feat_BTC, fp16, some clips at a time. Raises WeightsError: they are more than fp16 holds."""
        size = max(1, FRAMES // clip_BTHWC.shape[1])
        parts = [clip_BTHWC[at : at + size] for at in range(0, len(clip_BTHWC), size)]
        feat_BTC = torch.cat(
            [encoder.frame_features(self._clips(part, encoder.preprocessing)).float() for part in parts]
        )
        if not (highest := float(feat_BTC.abs().max())) <= HIGHEST:
            raise WeightsError(f"models.frozen: features of up to {highest:g}, expected at most {HIGHEST:g} (fp16)")
        return feat_BTC.half()

    def _near(self, name: str, emb_NTD: Tensor) -> dict[str, Tensor]:
        member_NM, near_S_NM = self.scorers[name].nearest(emb_NTD, self.what.nearest)
        found = {_MEMBERS + name: member_NM.int(), _ALIGNABILITY + name: near_S_NM}
        if self.what.paths:
            nearest_NUD = self.what.galleries[name].emb_GTD[member_NM[:, 0].cpu()].float()
            cost_NTU = cosine_cost(emb_NTD.cpu(), nearest_NUD)
            found[_PATH + name] = torch.tensor([aligned(cost_TU) for cost_TU in cost_NTU], dtype=torch.int32)
        return found

    def _load(self, uri: str, part: Role, num_classes: int) -> tuple[Any, ScoreHead | None]:
        chosen = self.recipe.models.encoder(part)
        encoder = build(chosen, num_classes=num_classes, size=self.recipe.size_of(part), seed=0)
        encoder.preprocessing = preprocessing_of(uri, chosen)
        state = _state(uri)
        weights.load_bytes(encoder, weights.to_bytes(_below(state, "encoder."), {}), sha256=None)
        head = _head(state)
        return encoder.to(self.device).eval(), head.to(self.device) if head else None

    def _scorer(self, name: str, gallery: Gallery) -> ClassScorer:
        head = self.frame[name][1]
        assert head is not None, f"{name} has a gallery, but no score head: it is not trained by L_AV"
        gamma, mean = self.recipe.align.gamma, self.recipe.label.mean
        return ClassScorer(gallery, head, gamma=gamma, mean=mean, device=self.device)

    def _clips(self, clip_BTHWC: np.ndarray | None, preprocessing: Preprocessing) -> Tensor:
        assert clip_BTHWC is not None, "the plan of this pass has no clip of f_E"
        raw = torch.from_numpy(np.array(clip_BTHWC)).to(self.device)
        return centre(raw, self.recipe.augment, self.recipe.frames.crop, preprocessing)


def score_head(snapshot: str) -> ScoreHead:
    """f_S of an aligned f_A, on the CPU."""
    head = _head(_state(snapshot))
    assert head is not None, f"{snapshot} has no score head: it is not trained by L_AV"
    return head


def _head(state: Mapping[str, Tensor]) -> ScoreHead | None:
    score = _below(state, "score.")
    if not score:
        return None
    head = ScoreHead()
    head.load_state_dict(score)
    return head.eval()


def _state(snapshot: str) -> dict[str, Tensor]:
    return weights.read_state(artefacts.read_part(*located(snapshot), "weights.safetensors"))


def _digest(snapshot: str) -> str:
    """Of the weights in a committed snapshot."""
    return artefacts.marker_digest(artefacts.required(*located(snapshot)))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
