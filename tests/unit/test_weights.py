"""Weights as bytes: exact round trips, and errors that name what is wrong. Axes: none beyond the tensors' own."""

import hashlib
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from finepseudo.errors import ArtefactError
from finepseudo.models.encoders import build
from finepseudo.models.table import choose
from finepseudo.models.weights import load_bytes, to_bytes


def small(seed=0):
    return build(choose("tiny_r2plus1d"), num_classes=3, size=16, seed=seed)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def changed(drop=(), **add):
    state = {key: value for key, value in small(1).state_dict().items() if key not in drop}
    return to_bytes({**state, **add}, {})


def refused(data, module=None, **options):
    """The message; and the module must be untouched."""
    module = module or small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ArtefactError) as caught:
        load_bytes(module, data, **{"sha256": None, **options})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    return str(caught.value)


def test_round_trip_is_exact_with_buffers():
    source, target = small(1), small(2)
    source(torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    data = to_bytes(source, {"kind": "f_E"})
    assert not same(source, target)
    load_bytes(target, data, sha256=digest(data).upper())
    assert same(source, target)
    assert target.backbone.stages[0][1].num_batches_tracked == 1


def test_a_state_dict_serves_as_well_as_a_module():
    module = small()
    assert to_bytes(module, {"a": "b"}) == to_bytes(module.state_dict(), {"a": "b"})


def test_equal_input_gives_equal_bytes():
    assert len({to_bytes(small(), {"kind": "f_E"}) for _ in range(8)}) == 1


def test_the_file_is_one_that_the_library_reads():
    module = small()
    found = safetensors.torch.load(to_bytes(module, {"note": "β, 日本"}))
    assert all(torch.equal(found[key], value) for key, value in module.state_dict().items())


def test_views_and_shared_tensors_are_stored_as_they_look():
    base = torch.arange(12.0).reshape(3, 4)
    found = safetensors.torch.load(to_bytes({"t": base.T, "row": base[1], "again": base}, {}))
    assert torch.equal(found["t"], base.T)
    assert torch.equal(found["row"], base[1])
    assert torch.equal(found["again"], base)


def test_wrong_digest_is_refused_before_anything_is_read():
    message = refused(b"whatever", sha256="0" * 64)
    assert digest(b"whatever") in message
    assert "0" * 64 in message
    assert "fetch it again" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        pickle.dumps({"a": 1}),
        (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
        (2).to_bytes(8, "little") + b"[]",
    ],
    ids=["empty", "short", "pickle", "no text", "no table"],
)
def test_other_files_are_refused(data):
    message = refused(data)
    assert "not a safetensors file" in message
    assert "never read" in message


def test_a_file_cut_short_is_refused():
    assert "damaged safetensors file" in refused(to_bytes(small(), {})[:-5])


def test_a_missing_name_is_named():
    message = refused(changed(drop=["fc.weight", "fc.bias"]))
    assert "do not fit TinyR2Plus1D: 2 missing from the file: fc.weight, fc.bias." in message
    assert "Nothing was loaded" in message
    assert "allow_missing" in message


def test_an_unexpected_name_is_named():
    assert "1 unknown to the model: extra.weight." in refused(changed(**{"extra.weight": torch.ones(2)}))


def test_another_shape_is_named_with_both():
    message = refused(changed(**{"fc.weight": torch.ones(7, 128), "fc.bias": torch.ones(7)}))
    assert "2 of another shape or kind of number: fc.weight (file float32 (7, 128), model float32 (3, 128))" in message


def test_a_shape_that_would_broadcast_is_refused():
    assert "fc.bias (file float32 (1,), model float32 (3,))" in refused(changed(**{"fc.bias": torch.ones(1)}))


def test_whole_numbers_do_not_become_weights():
    assert "fc.bias (file int64 (3,), model float32 (3,))" in refused(changed(**{"fc.bias": torch.ones(3).long()}))


def test_half_precision_is_converted():
    module = small()
    load_bytes(module, changed(**{"fc.bias": torch.full((3,), 0.5, dtype=torch.float16)}), sha256=None)
    assert module.fc.bias.dtype == torch.float32
    assert module.fc.bias.tolist() == [0.5] * 3


def test_all_faults_are_told_at_once():
    data = changed(drop=["fc.bias"], **{"fc.weight": torch.ones(1), "extra": torch.ones(1)})
    message = refused(data)
    assert "1 missing from the file: fc.bias; 1 unknown to the model: extra; 1 of another shape" in message


def test_ten_names_and_a_count():
    message = refused(to_bytes({"other": torch.ones(1)}, {}), nn.Sequential(*(nn.Linear(1, 1) for _ in range(7))))
    assert "14 missing from the file: 0.weight, 0.bias, 1.weight" in message
    assert "4.bias and 4 more" in message
    assert "5.weight" not in message


def test_allowed_names_may_be_absent():
    source, module = small(1), small(2)
    own = module.fc.bias.detach().clone()
    load_bytes(module, changed(drop=["fc.bias"]), sha256=None, allow_missing=("fc.bias",))
    assert torch.equal(module.fc.bias, own)
    assert torch.equal(module.fc.weight, source.fc.weight)


@pytest.mark.parametrize("name", ["fc.bias", "fc.biass"])
def test_an_allowed_name_that_does_not_occur_is_an_error(name):
    assert "1 allowed to be absent on one side but not so: fc.bias" in refused(changed(), allow_missing=(name,))
