"""Encoders of the full size train at ZeRO stages 2 and 3 on two workers: nothing reads what another rank holds."""

from dataclasses import replace

import pytest
from servers import free_port
from training_helpers import case, launch, recipe, train

from finepseudo.models.table import choose
from finepseudo.recipe import Models
from finepseudo.train.checkpoint import read_history


@pytest.mark.long
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("align", Models(frame="vtn_vit_s16")),
        ("classify", Models(video="r3d_18", video_options={"temporal_stride_1": "true"})),
        ("classify", Models(video="timesformer_b16")),
        pytest.param("align", Models(frame="vtn_resnet50"), marks=pytest.mark.slow),
        pytest.param("classify", Models(video="aim_vit_b16"), marks=pytest.mark.slow),
        pytest.param("classify", Models(video="videomae_b16"), marks=pytest.mark.slow),
    ],
    ids=["vtn_vit_s16", "r3d_18", "timesformer_b16", "vtn_resnet50", "aim_vit_b16", "videomae_b16"],
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("vtn_resnet18", False),
        ("aim_vit_b16", True),
        pytest.param("r2plus1d_18", False, marks=pytest.mark.slow),
        pytest.param("vtn_clip_vit_b16", True, marks=pytest.mark.slow),
    ],
)
def test_both_stages_halve_what_they_shard_and_take_the_same_steps(name, again):
    """Nor do layers that are computed again disturb what is gathered."""
    import sharding  # DeepSpeed comes with it

    where = {"size": 32, "frames": 4, "recompute": again}
    two, three = (sharding.measured(sharding.Cell(choose(name), stage, port=free_port(), **where)) for stage in (2, 3))
    for rank in range(sharding.WORLD):
        assert two[rank]["loss"] == pytest.approx(three[rank]["loss"], rel=1e-3)
        assert three[rank]["parameters"] == pytest.approx(two[rank]["parameters"] / 2, rel=0.02)
        assert three[rank]["optimiser"] == pytest.approx(two[rank]["optimiser"], rel=0.02)
    assert two[0]["loss"] != two[1]["loss"]
