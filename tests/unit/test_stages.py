"""Temperatures, the guard, and soft targets: what stands between scores and the next training."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from finepseudo.align import collaborate
from finepseudo.comparison import compare, table
from finepseudo.errors import TrainingError
from finepseudo.recipes import find
from finepseudo.runtime.stages import guard, soft_targets, temperatures

NAMES = ("tuck", "pike", "twist")


def scores(count, agreement, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_NK = torch.randn(count, 3, generator=generator)
    sbar_NK = logits_NK.clone()
    different = torch.arange(count) >= agreement * count
    sbar_NK[different] = sbar_NK[different].roll(1, dims=1)
    return sbar_NK, logits_NK


def test_confidence_is_set_to_the_estimated_accuracy():
    sbar_NK, logits_NK = scores(400, 0.7)
    heat = temperatures(sbar_NK, logits_NK, 0.92)
    assert heat.accuracy_A == pytest.approx(0.92)
    assert heat.accuracy_E == pytest.approx(0.49)
    assert float(collaborate.p_align(sbar_NK, heat.tau_A).max(1).values.mean()) == pytest.approx(0.92, abs=1e-3)
    assert float(collaborate.p_video(logits_NK, heat.tau_E).max(1).values.mean()) == pytest.approx(0.49, abs=1e-3)
    assert temperatures(sbar_NK, logits_NK, None).accuracy_A == pytest.approx(0.9)
    assert temperatures(sbar_NK, logits_NK, 1.0).accuracy_A == pytest.approx(0.95)


def labels(accepted, label, agree):
    return pa.table({"accepted": accepted, "label": label, "agree": agree})


def test_guard_lets_good_labels_pass_and_stops_collapsed_ones():
    recipe = find("rehearsal")
    guard(labels([True, True, True, False], [0, 1, 2, 2], [True, True, False, True]), recipe, "round", NAMES)
    with pytest.raises(
        TrainingError, match=r"round: almost nothing is accepted .*coverage 0.000.* Lower label.threshold"
    ):
        guard(labels([False] * 4, [0, 1, 2, 2], [True] * 4), recipe, "round", NAMES)
    with pytest.raises(TrainingError, match=r"one class, pike, takes most accepted labels .*share 0.750"):
        guard(labels([True] * 4, [1, 1, 1, 2], [True] * 4), recipe, "round", NAMES)
    with pytest.raises(TrainingError, match=r"hardly ever agree .*agreement 0.000"):
        guard(labels([True] * 3, [0, 1, 2], [False] * 3), recipe, "round", NAMES)
    loose = replace(recipe, label=replace(recipe.label, min_agreement=0.0))
    guard(labels([True] * 3, [0, 1, 2], [False] * 3), loose, "round", NAMES)


def test_soft_targets_spread_what_was_not_kept():
    rows = [{"top": [3, 0], "top_p": [0.6, 0.2]}, {"top": [1, 2], "top_p": [0.75, 0.25]}]
    targets_MK = soft_targets(rows, 4)
    np.testing.assert_allclose(targets_MK, [[0.2, 0.1, 0.1, 0.6], [0, 0.75, 0.25, 0]], atol=1e-6)
    np.testing.assert_allclose(soft_targets([{"top": [1, 0], "top_p": [0.9, 0.1]}], 2), [[0.1, 0.9]], atol=1e-6)


def test_comparison_takes_differences_seed_by_seed():
    def result(a, b):
        parts = {"f_E": {"top1": a}, "fused": {"top1": b}, "p_A": {"top1": b}}
        lower = {name: {"top1": part["top1"] - 0.1} for name, part in parts.items()}
        return {"recipe": {}, "finepseudo": parts, "supervised": lower}

    body = compare({0: result(0.8, 0.9), 1: result(0.6, 0.9)})
    assert body["top1"]["finepseudo"]["f_E"]["mean"] == pytest.approx(0.7)
    assert body["top1"]["finepseudo"]["f_E"]["se"] == pytest.approx(0.1)
    gain = body["differences"]["finepseudo f_E - supervised f_E"]
    assert gain["mean"] == pytest.approx(0.1)
    assert gain["se"] == pytest.approx(0.0, abs=1e-12)
    assert "+0.100" in table(body)
