"""Which clips there are, the class word of each, and the random numbers that belong to it.

A class word such as `TPW-U` names the elements in their order, then the landing:

    T tuck somersault    B tuck, backwards    P pike somersault    W full twist    K straddle hold
    U landing, arms up   S arms to the side   F folded

and, as in `TPW-UX`, what stands beside the gymnast: X a box, Y a beam.

All randomness is keyed by the clip's own id, or by its person's: adding clips or classes changes no other clip.
"""

import hashlib
from functools import lru_cache

import numpy as np

from finepseudo.recipe import Rehearsal

ELEMENTS, LANDINGS, APPARATUS = "TBPWK", "USF", "XY"
SPLITS = ("train", "test")


def letters(word: str) -> tuple[str, ...]:
    """What moves: `TPW-U` and `TPW-UX` -> ("T", "P", "W", "U"). Raises ValueError if it is no class word."""
    elements, hyphen, rest = word.partition("-")
    landing, apparatus = rest[:1], rest[1:]
    if (
        not elements
        or set(elements) - set(ELEMENTS)
        or not hyphen
        or landing not in tuple(LANDINGS)
        or apparatus not in ("", *APPARATUS)
    ):
        raise ValueError(
            f"expected a class word such as 'TPW-U' or 'TPW-UX' (of {ELEMENTS}, then one of {LANDINGS}, then one of "
            f"{APPARATUS} or none), got {word!r}"
        )
    return (*elements, landing)


@lru_cache(maxsize=16)
def _labels(spec: Rehearsal, split: str) -> dict[str, int]:
    """video_id -> label, in the order of the ids."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    count = spec.train_per_class if split == "train" else spec.test_per_class
    keys: list[tuple[str, int]] = []
    for label, word in enumerate(spec.words):
        rate = spec.rates ** (-label / max(1, len(spec.words) - 1)) if split == "train" else 1.0
        keys += [(f"{spec.seed}/{split}/{word}/{i}", label) for i in range(max(1, round(count * rate)))]
    return dict(sorted((hashlib.sha256(key.encode()).hexdigest()[:12], label) for key, label in keys))


def video_ids(spec: Rehearsal, split: str) -> list[tuple[str, int]]:
    """(video_id, label) of a split. Ids are hashes, sorted, so neither id nor order tells the class."""
    return list(_labels(spec, split).items())


def word_of(spec: Rehearsal, split: str, video_id: str) -> str:
    """A clip's class word. Raises ValueError if the split has no such clip."""
    label = _labels(spec, split).get(video_id)
    if label is None:
        raise ValueError(f"expected a video_id of the {split} split, got {video_id!r}")
    return spec.words[label]


def apparatus_of(spec: Rehearsal, split: str, video_id: str) -> str:
    """What stands beside the gymnast, a letter of APPARATUS; empty for nothing."""
    return word_of(spec, split, video_id).partition("-")[2][1:]


def person_of(spec: Rehearsal, split: str, video_id: str) -> str | None:
    """Who is seen in a clip, by a draw that knows nothing of its class; None where every clip is of its own."""
    if not spec.persons:
        return None
    rng = stream(video_id, "person")
    strange = spec.strangers and split == "test" and rng.random() < 0.5
    kind, number = ("stranger", spec.strangers) if strange else ("person", spec.persons)
    return f"{spec.seed}/{kind}-{rng.integers(number)}"


def stream(key: str, purpose: str) -> np.random.Generator:
    """Random numbers of one clip or person for one purpose, which no draw for another purpose moves."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{key}/{purpose}".encode()).digest()[:16], "big"))
