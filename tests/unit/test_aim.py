"""AIM: CLIP on every frame until it is trained; the adapters' formula; what is frozen, and what is not.

Axes: B batch, T frames, C channels, F features, L tokens of a frame.
"""

import pytest
import torch
from torch.nn import functional as F

from finepseudo.models.encoders import build
from finepseudo.models.table import choose
from finepseudo.models.vit import ViT

pytestmark = pytest.mark.usefixtures("few_layers")


def make(seed=0):
    return build(choose("aim_vit_b16"), num_classes=3, size=32, seed=seed)


def clip(T=4):
    return torch.randn(2, T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(module):
    """With other weights than 0 in what starts at 0."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not name.startswith("backbone."):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return module


@torch.no_grad()
def test_untrained_it_is_clip_on_every_frame():
    module, vit = make().eval(), ViT(48, 3, layers=2, clip=True)
    vit.load_state_dict(module.backbone.state_dict())
    feat_BTF = vit(clip().flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(module.time_features(clip()), feat_BTF)
    torch.testing.assert_close(module(clip()), module.fc(feat_BTF.mean(1)))


@torch.no_grad()
@pytest.mark.parametrize("T", [8, 5])
def test_the_formula(T):
    """By loops over tokens and frames."""
    module = trained(make()).eval()
    vit = module.backbone
    times_TF = module.times.position_TF
    if T != 8:
        times_TF = F.interpolate(times_TF.T[None], T, mode="linear")[0].T
    x = vit.tokens(vit.patches(clip(T)[0])) + times_TF[:, None]  # T L F
    x = vit.norm_in(x)

    def adapter(part, y):
        return part.up(F.gelu(part.down(y)))

    for adapters, layer in zip(module.adapters, vit.layers, strict=True):
        over_time = [layer.attention(layer.norm1(x[None, :, token]))[0] for token in range(x.shape[1])]
        x = x + adapter(adapters.time, torch.stack(over_time, 1))
        y = torch.stack([layer.attention(layer.norm1(x[None, t]))[0] for t in range(T)])
        x = x + y + adapter(adapters.space, y)
        y = layer.norm2(x)
        x = x + layer.mlp(y) + 0.5 * adapter(adapters.joint, y)
    expected = module.fc(vit.norm(x[:, 0]).mean(0))
    torch.testing.assert_close(module(clip(T))[0], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(module(clip(T).flip(1))[0], expected, atol=1e-3), "it sees the order of frames"


def test_what_is_frozen_has_no_gradient_and_the_rest_learns():
    module = trained(make())
    module(clip()).square().sum().backward()
    for name, p in module.named_parameters():
        frozen = name.startswith("backbone.") and not name.startswith("backbone.norm.")
        assert p.requires_grad is not frozen, name
        assert (p.grad is None) is frozen, name
        assert frozen or p.grad.abs().max() > 0, name


def test_parameters_of_the_full_size(monkeypatch):
    from finepseudo.models.aim import AIMViTB16

    monkeypatch.setattr(AIMViTB16, "shape", {"width": 768, "heads": 12, "layers": 12})
    with torch.device("meta"):
        module = AIMViTB16(size=224, num_classes=5, drop_path=0.0)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    assert counts == {"backbone": 85_799_424, "times": 6_144, "adapters": 10_651_392, "fc": 3_845}
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 10_657_536 + 3_845 + 1_536
