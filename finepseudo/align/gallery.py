"""What f_A made of videos: embeddings, and the gallery, which also knows the class of each. Immutable and validated.

Axes: N videos, G gallery, T frames, D embedding, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from finepseudo.errors import ArtefactError


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Frame embeddings of videos of any kind, whose classes are nobody's business here.

    Args:
        emb_NTD: frame embeddings, floating point, finite, L2-normalised over D.
        video_ids: N distinct names.
    Raises ArtefactError where shapes, types or names do not fit, or an embedding is not finite; rows are named.
    """

    emb_NTD: Tensor
    video_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_rows("embeddings", "(N,T,D)", self.emb_NTD, self.video_ids)
        bad = (~self.emb_NTD.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            named = ", ".join(f"{n} ({self.video_ids[n]})" for n in bad[:8])
            raise ArtefactError(f"embeddings: expected finite values, got {len(bad)} bad rows: {named}")

    def __len__(self) -> int:
        return len(self.video_ids)

    def among(self, video_ids: Collection[str]) -> Embeddings:
        """Those of the named videos, in the present order."""
        rows = [n for n, video_id in enumerate(self.video_ids) if video_id in video_ids]
        return Embeddings(self.emb_NTD[rows], tuple(self.video_ids[n] for n in rows))

    def gallery(self, labels: Mapping[str, int], num_classes: int) -> Gallery:
        members = self.among(labels.keys())
        label_G = torch.tensor([labels[video_id] for video_id in members.video_ids], dtype=torch.int64)
        return Gallery(members.emb_NTD, label_G, members.video_ids, num_classes)

    def to_bytes(self) -> bytes:
        """One safetensors file; equal embeddings give equal bytes."""
        ids = torch.tensor(list(json.dumps(self.video_ids).encode()), dtype=torch.uint8)
        return save({"emb_NTD": self.emb_NTD.detach().cpu().contiguous(), "video_ids": ids})

    @classmethod
    def from_bytes(cls, data: bytes) -> Embeddings:
        """Read what `to_bytes` wrote; ArtefactError for other files, and where the content is not valid."""
        try:
            tensors = load(data)
            emb_NTD, ids = tensors["emb_NTD"], tuple(json.loads(bytes(tensors["video_ids"].tolist())))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ArtefactError(f"{len(data)} bytes are not embeddings ({error}); embed the videos again") from error
        return cls(emb_NTD, ids)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Labelled videos that an unlabelled one is compared with.

    Args:
        emb_GTD: frame embeddings, floating point, finite, L2-normalised over D.
        label_G: int64 classes, 0..num_classes-1.
        video_ids: G distinct names.
        num_classes: K, counting the classes that have no member here.
    Raises ArtefactError where shapes, types, labels or names do not fit, or an embedding is not finite; rows are named.
    """

    emb_GTD: Tensor
    label_G: Tensor
    video_ids: tuple[str, ...]
    num_classes: int

    def __post_init__(self) -> None:
        emb, label = self.emb_GTD, self.label_G
        _check_rows("gallery", "(G,T,D)", emb, self.video_ids)
        G = len(emb)
        if tuple(label.shape) != (G,) or label.dtype != torch.int64:
            raise ArtefactError(f"gallery: expected label int64 ({G},) beside {_describe(emb)}, got {_describe(label)}")
        self._refuse((label < 0) | (label >= self.num_classes), f"labels within 0..{self.num_classes - 1}")
        self._refuse(~emb.flatten(1).isfinite().all(1), "finite embeddings")

    def _refuse(self, bad_G: Tensor, expected: str) -> None:
        rows: list[int] = bad_G.nonzero().flatten().tolist()
        if rows:
            named = ", ".join(f"{g} ({self.video_ids[g]}, label {int(self.label_G[g])})" for g in rows[:8])
            raise ArtefactError(f"gallery: expected {expected}, got {len(rows)} bad rows: {named}")

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def digest(self) -> str:
        """Of members, classes and embeddings: what is scored against equal ones is equal."""
        state = hashlib.sha256(json.dumps([self.video_ids, self.label_G.tolist(), self.num_classes]).encode())
        state.update(self.emb_GTD.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()[:12]

    def counts(self) -> list[int]:
        """Members of each of the K classes, 0 included."""
        return torch.bincount(self.label_G, minlength=self.num_classes).tolist()

    def take(self, rows: Sequence[int]) -> Gallery:
        index = torch.tensor(list(rows), dtype=torch.long, device=self.emb_GTD.device)
        ids, label_G = tuple(self.video_ids[g] for g in rows), self.label_G[index.to(self.label_G.device)]
        return replace(self, emb_GTD=self.emb_GTD[index], label_G=label_G, video_ids=ids)

    def to(self, device: torch.device | str) -> Gallery:
        return replace(self, emb_GTD=self.emb_GTD.to(device), label_G=self.label_G.to(device))

    def balanced(self, per_class_max: int, seed: int) -> Gallery:
        """At most `per_class_max` members of each class, in the present order.                    [C]

        The choice is by a digest of seed and video id: it does not depend on the order of the rows, and adding a
        video displaces one of its own class at most.
        """
        if per_class_max < 1:
            raise ValueError(f"expected per_class_max >= 1, got {per_class_max}")
        keys = [hashlib.sha256(f"{seed}:{v}".encode()).digest() for v in self.video_ids]
        left = [per_class_max] * self.num_classes
        kept: list[int] = []
        labels: list[int] = self.label_G.tolist()
        for g in sorted(range(len(self)), key=keys.__getitem__):
            if left[labels[g]] > 0:
                left[labels[g]] -= 1
                kept.append(g)
        return self.take(sorted(kept))

    def slices(self, n: int) -> tuple[Gallery, ...]:
        """At most `n` consecutive parts, none empty, whose sizes differ by one at most."""
        if n < 1:
            raise ValueError(f"expected n >= 1 slices, got {n}")
        n = min(n, len(self))
        if n == 1:
            return (self,)  # not copied
        edges = [k * len(self) // n for k in range(n + 1)]
        return tuple(self.take(range(a, b)) for a, b in pairwise(edges))


def _check_rows(what: str, axes: str, emb: Tensor, video_ids: tuple[str, ...]) -> None:
    if emb.dim() != 3 or 0 in emb.shape or not emb.is_floating_point():
        raise ArtefactError(f"{what}: expected non-empty floating emb {axes}, got {_describe(emb)}")
    if len(video_ids) != len(emb):
        raise ArtefactError(f"{what}: expected {len(emb)} video_ids for emb {_describe(emb)}, got {len(video_ids)}")
    if len(set(video_ids)) != len(video_ids):
        twice = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
        raise ArtefactError(f"{what}: expected distinct video_ids, got twice: {twice[:8]}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
