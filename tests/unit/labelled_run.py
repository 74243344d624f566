"""A run directory with committed labels, made by the functions that a run makes them with, and nothing else in it."""

import dataclasses
import json

import clips
import numpy as np
import torch

from finepseudo.align import collaborate
from finepseudo.data.plan import plan_score
from finepseudo.recipes import find
from finepseudo.run import KNOWN, LABELS, LEFT_OUT, Run, claim, labels, pass_plan
from finepseudo.storage import artefacts
from finepseudo.storage.store import Store
from finepseudo.train.pseudo_labels import label_table

NAMES = ('tuck, "free"', "pike & twist", "a<b", "straddle", "box", "handspring – ü")
LABELLED = 6  # clips v000 to v005 are D_l, one of each class


def labelled_run(folder, count=14, rounds=2, *, method="finepseudo", known=0.0, undecoded=(), without=(), **columns):
    """A run of clips v000, v001, ..., of which those behind D_l are D_u, but for those that are rejected or a test.

    Args:
        known: label.known; θ_known is 1 then.
        undecoded: rows of the manifest that the last round could not decode; from the second on, with a reason.
        without: columns that labels of an older version lack.
        columns: of the manifest.
    """
    store = Store(str(folder))
    recipe = find("rehearsal_smoke")
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, root=f"{folder}/data", rehearsal=None),
        label=dataclasses.replace(recipe.label, known=known),
        rounds=dataclasses.replace(recipe.rounds, count=3),
    )
    claim(store, recipe)
    made = clips.manifest(count, [row % len(NAMES) for row in range(count)], NAMES, **columns)
    clips.commit(store, made)
    ids = made.ids(np.arange(LABELLED))
    artefacts.commit(store, "split", {"split-seed0.json": json.dumps({"labelled": ids}).encode()}, {})
    asked = np.setdiff1d(made.rows("train"), np.arange(LABELLED))
    plan = plan_score(made, asked, align_frames=4, video_frames=4, clips=1, block_videos=8)
    plan.ensure(store, pass_plan("label/round-1", plan.fingerprint))
    for number in range(1, rounds + 1):
        decoded = np.setdiff1d(asked, undecoded) if number == rounds else asked
        left = {int(row): f"cut: {row}" for row in np.setdiff1d(asked, decoded)[1:]}
        commit_round(store, made, decoded, f"{method}/round-{number}", known, seed=number, without=without, left=left)
    return Run.at(store)


def commit_round(store, made, clip_N, name, known=0.0, *, seed=0, without=(), left=None):
    """Random labels of some clips."""
    random = np.random.default_rng(seed)
    p_A_NK, p_E_NK = (torch.tensor(random.dirichlet(np.full(len(NAMES), 0.3), len(clip_N))).float() for _ in range(2))
    found = collaborate.decide(
        collaborate.fuse(p_A_NK, p_E_NK), p_A_NK, p_E_NK, made.ids(clip_N), threshold=0.5,
        knownness_N=torch.tensor(random.normal(1, 1, len(clip_N))), known=1.0 if known else -np.inf,
    )  # fmt: skip
    near_NM = random.permuted(np.tile(np.arange(LABELLED), (len(clip_N), 1)), axis=1)[:, :3].astype(np.int32)
    near_S_NM = -np.sort(-random.random((len(clip_N), 3)).astype(np.float32), axis=1)
    table = label_table(found, clip_N, p_A_NK, p_E_NK, near_NM, near_S_NM).drop_columns(list(without))
    parts = {LABELS: artefacts.table_bytes(table), "fusion.json": b"{}", "seconds.json": b"{}"}
    parts |= {LEFT_OUT: json.dumps(left).encode()} if left else {}
    lineage = {"method": name.partition("/")[0], **({"known": known} if known else {})}
    artefacts.commit(store, labels(name), parts | ({KNOWN: b"1.0"} if known else {}), lineage)
