"""Same picture, same weights, same answer as the libraries that published them: through their names, into our encoders.

reference.json is what reference.py got from the libraries; the weights are made again here by its rule.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from reference import filled, kept, picture

from finepseudo.models import public, weights
from finepseudo.models.encoders import build
from finepseudo.models.table import ENCODERS, choose

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())


def loaded(key):
    """An encoder that started from the library's weights by way of a converted file; and what was converted."""
    name, found = key.partition("/")[0], filled(REFERENCE[key]["shapes"])
    size = min(said["picture"][-1] for said in REFERENCE[key]["says"].values())
    module = build(choose(name), num_classes=public.classes_of(found), size=size, seed=0)
    converted = public.convert(found, name, module)
    data = weights.to_bytes(converted.state, {public.KEY: json.dumps({"encoder": name})})
    public.load(module, name, data, sha256=None)
    return module.eval(), converted


def answer(module, shape):
    """Logits of a clip, or the backbone's features of frames."""
    with torch.no_grad():
        x = picture(*shape)
        return module(x.transpose(1, 2)) if x.ndim == 5 else module.backbone(x)


LARGE = ("timesformer_b16", "vjepa2_l16")  # half a minute and more


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=pytest.mark.long if key in LARGE else ()) for key in REFERENCE]
)
def test_same_picture_same_answer(key):
    module, converted = loaded(key)
    part, shapes = ENCODERS[key.partition("/")[0]].part, REFERENCE[key]["shapes"]
    mine = sum(p.numel() for p in (module.backbone if part == "frame" else module).parameters())
    aside = sum(math.prod(shapes[name]) for name in converted.aside)
    assert mine + aside == REFERENCE[key]["parameters"], "every parameter of the library is taken or named"
    for said in REFERENCE[key]["says"].values():
        found = answer(module, said["picture"])
        assert list(found.shape) == said["answer"]
        torch.testing.assert_close(torch.tensor(kept(found)), torch.tensor(said["kept"]), atol=1e-4, rtol=1e-5)
        assert float(found.std()) == pytest.approx(said["std"], rel=1e-4)
        assert said["std"] > 0.1, "the answer is more than nothing"
