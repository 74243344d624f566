"""Encoders of the full size train at ZeRO stages 2 and 3 on two workers: nothing reads what another rank holds."""

from dataclasses import replace

import pytest
from training_helpers import case, launch, recipe, train

from finepseudo.recipe import Models
from finepseudo.train.checkpoint import read_history


@pytest.mark.long
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("align", Models(frame="vtn_vit_s16")),
        ("align", Models(frame="vtn_resnet50")),
        ("classify", Models(video="r3d_18", video_options={"temporal_stride_1": "true"})),
        ("classify", Models(video="aim_vit_b16")),
        ("classify", Models(video="videomae_b16")),
        ("classify", Models(video="timesformer_b16")),
    ],
    ids=["vtn_vit_s16", "vtn_resnet50", "r3d_18", "aim_vit_b16", "videomae_b16", "timesformer_b16"],
)
def test_two_workers_take_the_same_steps_at_both_stages(kind, models, tmp_path):
    how = recipe()
    how = replace(how, models=models, gitdl=replace(how.gitdl, video_steps=0))
    one = case(tmp_path, kind, "two", how=how, steps=2, lr=1e-5)
    cases = [one.but(zero=2), one.again("three").but(zero=3)]
    outcomes = launch(2, tmp_path, train, cases, limit_s=1800)
    assert [[outcome.text for outcome in of_rank] for of_rank in outcomes] == [["", ""], ["", ""]]
    curves = [[point["loss"] for point in read_history(x.store, x.stage.folder).curve] for x in cases]
    assert len(curves[0]) == 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
