"""What a run was made from: every committed artefact with its digest, and the digests of what it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from finepseudo import run as places
from finepseudo.data.manifest import FOLDER
from finepseudo.results import Results
from finepseudo.run import Run
from finepseudo.storage import artefacts


@dataclass(frozen=True)
class Made:
    """One artefact. Origins are digests; of those that no artefact of the run has, public weights are an example."""

    name: str
    digest: str
    origins: tuple[str, ...]
    how: str


def lineage(run: Run, results: Results) -> list[Made]:
    """Each artefact behind all that it was made of.

    Raises ArtefactError: something of it is gone.
    """
    return _in_order([*_data(run, results), *_trained(run, results), *_labelled(run), _measured(results)])


def origin_rows(made: list[Made], results: Results) -> list[dict[str, Any]]:
    """For the page: origins with the name of the artefact that has the digest, and its place in the list.

    Weights that another run directory made have no place; where they lie is their name.
    """
    known: dict[str, tuple[int | None, str]] = {}
    for one in results.snapshots.values():
        known |= {one.digest_f_A: (None, one.f_A), one.digest_f_E: (None, one.f_E)}
    known |= {one.digest: (place, one.name) for place, one in enumerate(made)}
    return [
        {**vars(one), "origins": [(digest, *known.get(digest, (None, "elsewhere"))) for digest in one.origins]}
        for one in made
    ]


def _data(run: Run, results: Results) -> Iterator[Made]:
    recipe, manifest, split = results.recipe, results.manifest, results.split
    answers = run.recipe().split.answers
    yield Made("recipe", recipe.digest, (), f"{recipe.name}, seed {recipe.seed}")
    annotations = artefacts.required(run.store, FOLDER)["lineage"].get("annotations", "")[:12]
    usable = ", ".join(f"{count} {name}" for name, count in manifest.usable.items())
    said = f"{usable}; {manifest.rejected} rejected" + (f"; annotations {annotations}" if annotations else "")
    yield Made("manifest", manifest.fingerprint, (), said)
    said = f"seed {split.seed}: {split.labelled} labelled, {split.unlabelled} unlabelled"
    said += f"; answers of {answers}" if answers else ""
    yield Made("split", split.fingerprint, (manifest.fingerprint,), said)


def _trained(run: Run, results: Results) -> Iterator[Made]:
    split = artefacts.required(run.store, places.SPLIT)["lineage"].get("fingerprint", "")
    labels = {name: _digest(run, places.labels(name)) for name in run.rounds()}
    for name, plan in run.plans():
        spec = plan.spec
        of = [results.manifest.fingerprint] if spec.manifest == FOLDER else []
        of += [split] if spec.labelled else []
        of += [labels[name.rpartition("/")[0]]] if name.rpartition("/")[0] in labels else []
        said = f"{spec.kind}: {spec.rows} rows of {len(plan.samples)} clips"
        yield Made(f"plan of {name}", plan.fingerprint, _present(of), said)
        for title, folder in (("weights", places.snapshot(name)), ("halfway weights", places.halfway(name))):
            marker = artefacts.committed(run.store, folder) or artefacts.committed(run.base, folder)
            if marker is not None:
                of = [marker["lineage"].get(key, "") for key in ("plan_fingerprint", "init_digest")]
                yield Made(f"{title} of {name}", artefacts.marker_digest(marker), _present(of), _training(marker))


def _labelled(run: Run) -> Iterator[Made]:
    for name, marker in run.embedded().items():
        said = f"{len(marker['lineage'].get('videos', ()))} clips"
        of = _present([marker["lineage"].get("f_A", "")])
        yield Made(f"embeddings {name}", artefacts.marker_digest(marker), of, said)
    for name in run.rounds():
        found = artefacts.required(run.store, places.labels(name))["lineage"]
        of = _present([found.get(key, "") for key in ("split", "f_A", "f_E")])
        said = f"fusion {found.get('fusion', '-')}, threshold {found.get('threshold', '-')}"
        yield Made(f"labels of {name}", _digest(run, places.labels(name)), of, said)


def _measured(results: Results) -> Made:
    weights = [digest for one in results.snapshots.values() for digest in (one.digest_f_A, one.digest_f_E)]
    of = _present([results.recipe.digest, results.split.fingerprint, *weights])
    folder = results.predictions.rpartition("/")[0]
    return Made("results", folder.rpartition("/")[2], of, f"stands by {results.prediction}")


def _training(marker: dict[str, Any]) -> str:
    found = marker["lineage"]
    encoder = found.get("encoder", {}).get("name", "-")
    return f"{encoder}, {found.get('objective', '-')}, {found.get('steps', '-')} steps, seed {found.get('seed', '-')}"


def _digest(run: Run, folder: str) -> str:
    return artefacts.marker_digest(artefacts.required(run.store, folder))


def _present(digests: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(digest for digest in digests if digest))


def _in_order(found: list[Made]) -> list[Made]:
    """What others are made of first, otherwise as it came."""
    ordered, left = list[Made](), list(found)
    while left:
        waiting = {one.digest for one in left}
        ready = [one for one in left if not waiting & ({*one.origins} - {one.digest})]
        ordered += ready or left
        left = [one for one in left if one not in ready] if ready else []
    return ordered
