"""Why a clip has its label: all that a run knows of one clip, as a page of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from finepseudo.data.manifest import UNKNOWN, Manifest
from finepseudo.errors import ManifestError
from finepseudo.fields import nearest
from finepseudo.labels.outcome import rows_of, undecoded
from finepseudo.recipe import Recipe
from finepseudo.run import RESULTS, Run, labels, pass_left_out
from finepseudo.storage import tables
from finepseudo.storage.tables import pc

SUREST = 5  # labels that a gallery clip stands behind, which are named
SEARCHED = 10_000  # names among which the nearest ones are looked for


def why(run: Run, name: str) -> str:
    """The page of a clip.

    Args:
        name: its id, or its file, below data.root or with it, where it is the only clip of that.
    Raises ManifestError: there is no such clip (the nearest names are shown), or the file has several.
    """
    recipe, manifest = run.recipe(), run.manifest()
    row = find(run, manifest, name)
    page = _Page(run, recipe, manifest, row)
    return "\n\n".join("\n".join(lines) for lines in page.sections() if lines)


def find(run: Run, manifest: Manifest, name: str) -> int:
    """The row of the manifest that is meant by an id or a file."""
    ids, files = manifest.clips["video_id"], manifest.clips["path"]
    if (row := pc.index(ids, name).as_py()) >= 0:
        return row
    file = name.removeprefix(f"{run.data().uri()}/")
    row_N = np.flatnonzero(pc.equal(files, file).to_numpy())
    if len(row_N) == 1:
        return int(row_N[0])
    if len(row_N):
        shown = ", ".join(manifest.ids(row_N[:8])) + (" and more" if len(row_N) > 8 else "")
        raise ManifestError(f"{file}: {len(row_N)} clips are parts of this file; name one of them: {shown}")
    column = files if "/" in name else ids
    raise ManifestError(f"no clip {name!r} in the manifest of {run.store.uri()}{nearest(name, _like(column, name))}")


def _like(column: Any, name: str) -> list[str]:
    """Names to compare with: of too many for all, those with the longest beginning that any shares."""
    lengths = range(len(name) if len(column) > SEARCHED else 0, -1, -1)
    shared = (column.filter(pc.starts_with(column, name[:length])) for length in lengths)
    return next((found for found in shared if len(found)), column).slice(0, SEARCHED).to_pylist()


class _Page:
    """Sections about one clip."""

    def __init__(self, run: Run, recipe: Recipe, manifest: Manifest, row: int) -> None:
        self.run, self.recipe, self.manifest, self.row = run, recipe, manifest, row
        (self.clip,) = tables.rows_at(manifest.clips, np.array([row]))
        (self.seen,) = tables.rows_at(run.seen()[0].clips.select(["status", "reason"]), np.array([row]))
        self.labelled, self.names = run.labelled(), run.class_names()
        self.truth = self.labelled.get(self.clip["video_id"], int(manifest.truth(np.array([row]))[0]))
        self.rounds = [name for names in run.rounds_by_method().values() for name in names]
        self.made = {name: run.labels(name) for name in self.rounds}

    def sections(self) -> Iterator[list[str]]:
        """Lines of each; none where there is nothing to say."""
        state = self._state()
        yield self._what(state)
        if state == "unlabelled":
            yield self._labels()
            yield self._votes()
        if state == "test":
            yield self._predicted()
        yield self._plans()
        if state == "labelled":
            yield self._behind()

    def _state(self) -> str:
        if self.seen["status"] != "ok":
            return "rejected"
        if self.clip["video_id"] in self.labelled:
            return "labelled"
        if self.clip["split"] == "test" or self._prediction():
            return "test"
        asked = bool(self.rounds) and self.row in self.run.asked()
        return "unlabelled" if asked or not self.rounds else "left out"

    def _what(self, state: str) -> list[str]:
        clip = self.clip
        said = {
            "rejected": f"rejected: {self.seen['reason']}",
            "labelled": "labelled (D_l)",
            "test": "test: it is measured on, and never trained on",
            "unlabelled": "unlabelled (D_u)",
            "left out": "left out of training by the split (held out, or not in its list)",
        }[state]
        lines = [f"clip   {clip['video_id']}", f"file   {clip['path']}{self._part()}", f"is     {said}"]
        lines[2] += f"; split {clip['split']!r} of the annotations"
        if self.truth != UNKNOWN:
            hidden = "" if state in ("labelled", "test") else " (never seen by training)"
            lines.append(f"{'label ' if state == 'labelled' else 'truth '} {self._name(self.truth)}{hidden}")
        return lines

    def _part(self) -> str:
        first, count, of = (self.clip[name] for name in ("start", "num_frames", "file_frames"))
        if count is None:
            return ""
        if (first, count) == (0, of):
            return f", whole: {count} frames"
        rate = self.clip["fps"]
        seconds = f" ({first / rate:.2f} to {(first + count) / rate:.2f} s)" if rate else ""
        return f", frames {first} to {first + count} of {of}{seconds}"

    def _labels(self) -> list[str]:
        head = ("round", "label", "p", "by f_E", "p_E", "by f_A", "p_A", "known-ness", "accepted")
        lines: list[Sequence[str]] = [head]
        for name in self.rounds:
            if (made := self._made(name)) is None:
                reason = pass_left_out(self.run.store, labels(name)).get(self.row)
                lines.append((name, "-", *[""] * 6, undecoded(reason)))
                continue
            each = (made[f"{what}{of}"] for of in ("", "_E", "_A") for what in ("label", "confidence"))
            said = [self._name(value) if isinstance(value, int) else _p(value) for value in each]
            lines.append((name, *said, f"{made['knownness']:.2f}", self._verdict(name, made)))
        found = _aligned(lines) if self.rounds else ["no round is labelled yet"]
        return ["Its labels", *found, *self._flips()]

    def _verdict(self, name: str, made: dict[str, Any]) -> str:
        if made["accepted"]:
            return "yes"
        threshold, bound = self.recipe.label.threshold, self.run.known_from(name)
        reasons: list[str] = []
        if made["confidence"] < threshold:
            reasons.append(f"p {_p(made['confidence'])} < label.threshold {threshold:g}")
        if bound is not None and made["knownness"] < np.float32(bound):
            reasons.append(f"known-ness {made['knownness']:.2f} < {bound:.2f}, as of an unknown class")
        return f"no: {', '.join(reasons)}"

    def _flips(self) -> list[str]:
        lines: list[str] = []
        for before, name in zip(self.rounds, self.rounds[1:], strict=False):
            if before.partition("/")[0] != name.partition("/")[0]:
                continue
            old, new = self._made(before), self._made(name)
            if old and new and old["label"] != new["label"]:
                lines.append(f"  it changed in {name}: {self._name(old['label'])} -> {self._name(new['label'])}")
        return lines

    def _votes(self) -> list[str]:
        lines = [("round", "alignability", "class", "labelled clip")]
        for name in self.rounds:
            made = self._made(name)
            if made is None:
                continue
            if "near" not in made:
                lines.append((name, "-", "-", "not known: an older version made these labels"))
                continue
            ids = self.manifest.ids(np.array(made["near"]))
            for place, (video_id, score) in enumerate(zip(ids, made["near_S"], strict=True)):
                lines.append(("" if place else name, _p(score), self._name(self.labelled[video_id]), video_id))
        return ["Who voted: the gallery clips that align with it best", *_aligned(lines)] if len(lines) > 1 else []

    def _plans(self) -> list[str]:
        lines = [("training", "this clip in its plan")]
        for name, plan in self.run.plans():
            clip_N = plan.samples["clip"].to_numpy()
            place = np.flatnonzero(clip_N == self.row)
            if not len(place):
                lines.append((name, "not in it"))
                continue
            (sample,) = tables.rows_at(plan.samples, place[:1])
            times = next((each for part, each in plan.reads() if part.start <= place[0] < part.stop), 0.0)
            labelled = place[0] < plan.spec.labelled
            label = "" if sample["label"] is None else f" {self._name(sample['label'])}"
            kind = f"labelled{label}" if labelled else f"pseudo-labelled{label}, weight {sample['weight']:.3f}"
            kind = kind if label else "without a label"
            lines.append((name, f"{kind}, read {times:.3g} times"))
        if len(lines) == 1:
            return ["Where it was used: no training is planned yet"]
        return ["Where it was used (on average over the plan's clips of its kind)", *_aligned(lines)]

    def _predicted(self) -> list[str]:
        found = self._prediction()
        if not found:
            return ["Predictions: none, the run is not finished, or the clip's class is not known"]
        named = {name: self._name(value) for name, value in found.items() if "/" in name}
        right = {name: "right" if found[name] == found["truth"] else "wrong" for name in named}
        lines = [("by", "predicted", ""), *((name, label, right[name]) for name, label in named.items())]
        return [f"Predictions (the run stands by {self.run.results().prediction})", *_aligned(lines)]

    def _prediction(self) -> dict[str, Any]:
        """The row of the finished run's predictions; empty where there is none."""
        if not self.run.store.exists(RESULTS):
            return {}
        table = self.run.predictions()
        place = pc.index(table["video_id"], self.clip["video_id"]).as_py()
        return tables.rows_at(table, np.array([place]))[0] if place >= 0 else {}

    def _behind(self) -> list[str]:
        """Of a gallery clip: the accepted labels that have it among their nearest ones."""
        lines = [("round", "accepted labels near it", "of its class", "the surest of these")]
        for name in self.rounds:
            if "near" not in self.made[name].column_names:
                continue
            near, same, surest = _standing_on(self.made[name], self.row, self.truth)
            named = ", ".join(f"{row['video_id']} {_p(row['confidence'])}" for row in surest)
            lines.append((name, str(near), str(same), named))
        return ["Whose labels it stands behind", *_aligned(lines)] if len(lines) > 1 else []

    def _made(self, name: str) -> dict[str, Any] | None:
        """Its label in a round."""
        place = rows_of(self.made[name]["clip"].to_numpy(), np.array([self.row]))
        return tables.rows_at(self.made[name], place)[0] if place[0] >= 0 else None

    def _name(self, label: int) -> str:
        return self.names[label]


def _standing_on(table: pa.Table, row: int, truth: int) -> tuple[int, int, list[dict[str, Any]]]:
    """Accepted labels that have a gallery clip among their nearest, those of its class, and the surest of these."""
    near, same, surest = 0, 0, list[dict[str, Any]]()
    for batch in table.select(["video_id", "label", "confidence", "accepted", "near"]).to_batches():
        parents = pc.list_parent_indices(batch["near"]).to_numpy()
        members: Any = batch["near"]
        hit_N = parents[members.flatten().to_numpy() == row]
        some = batch.take(pa.array(hit_N))
        some = some.filter(some["accepted"])
        of_class = some.filter(pc.equal(some["label"], truth))
        near, same = near + len(some), same + len(of_class)
        found = surest + of_class.select(["video_id", "confidence"]).to_pylist()
        surest = sorted(found, key=lambda one: -one["confidence"])[:SUREST]
    return near, same, surest


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns one under the other, two spaces apart; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in lines]


def _p(value: float) -> str:
    """As the report has probabilities."""
    return f"{value:.3f}".removeprefix("0")
