"""What the reference implementations say, for test_golden.py: run once, with the libraries, and committed as JSON.

    pip install --no-deps --target DIR torchvision==0.28.0 timm==1.0.31 transformers==5.24.0 open-clip-torch==3.3.0
    (and what these import, but never torch)
    PYTHONPATH=DIR python tests/golden/reference.py > tests/golden/reference.json

Weights and pictures follow from names and shapes by a rule (`filled`, `picture`), so a few numbers of the answers, and
the names and shapes of the weights, are all that needs to be kept. The test itself needs none of the libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEPT = 16  # numbers of each answer


def filled(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A tensor for each name, drawn by a generator that the name seeds, at a scale at which signals keep theirs.

    Variances are in 0.5..1.5, weights of norms around 1, other vectors around 0; matrices and convolutions have
    deviation sqrt(1 / fan in); counters are 0.
    """
    return {name: _filled(name, tuple(shape)) for name, shape in shapes.items()}


def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    normal = np.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))
    if name.endswith(("num_batches_tracked", "position_ids")):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return torch.from_numpy(np.abs(normal).clip(0.5, 1.5))
    if len(shape) <= 1:
        return 0.1 * torch.from_numpy(normal) + (1.0 if name.endswith("weight") else 0.0)
    return torch.from_numpy(normal / math.sqrt(math.prod(shape[1:])))


def picture(*shape: int) -> Tensor:
    """Normalised pixels: smooth shapes and a little noise."""
    rng = np.random.default_rng(7)
    *_, H, W = shape
    y_HW, x_HW = np.mgrid[:H, :W] / max(H, W)
    down, right = rng.standard_normal((2, *shape[:-2], 1, 1))
    waves = np.sin(6 * (down * y_HW + right * x_HW))
    return torch.from_numpy((waves + 0.1 * rng.standard_normal(shape)).astype(np.float32))


CLIP, FRAME, SMALL = (2, 3, 8, 56, 56), (2, 3, 224, 224), (2, 3, 96, 128)
SHORT, EIGHT, LITTLE = (1, 3, 4, 224, 224), (1, 3, 8, 224, 224), (2, 3, 4, 64, 64)


def kept(answer: Tensor) -> list[float]:
    """Evenly spread numbers of an answer."""
    flat = answer.detach().double().flatten()
    return flat[torch.linspace(0, len(flat) - 1, KEPT).round().long()].tolist()


def told(library: str, model: Any, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Of one model: where it is from, names and shapes of its weights, and what it answers to each picture.

    Args:
        answers: by name, (shape of the picture, function of the picture).
    """
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = sum(p.numel() for p in model.parameters())
    model.load_state_dict(filled(shapes))
    model.eval()
    said = {}
    with torch.no_grad():
        for name, (shape, answer) in answers.items():
            found = answer(picture(*shape))
            said[name] = {"picture": shape, "answer": list(found.shape), "kept": kept(found), "std": float(found.std())}
    version = importlib.metadata.version(library)
    return {"library": f"{library} {version}", "parameters": parameters, "shapes": shapes, "says": said}


def of_clips() -> dict[str, Any]:
    """The video Transformers: of the published sizes, but for the length of clips and, of V-JEPA 2, their pixels."""
    import transformers as hub

    videomae = hub.VideoMAEForVideoClassification(hub.VideoMAEConfig(num_frames=4, num_labels=KEPT))
    timesformer = hub.TimesformerForVideoClassification(hub.TimesformerConfig(num_labels=KEPT))
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_pooler_layers": 3}
    vjepa2 = hub.VJEPA2ForVideoClassification(
        hub.VJEPA2Config(**shape, crop_size=64, frames_per_clip=4, num_labels=KEPT)
    )
    return {
        name: told("transformers", model, {"logits": (picture, lambda x, m=model: m(x.transpose(1, 2)).logits)})
        for name, model, picture in (
            ("videomae_b16", videomae, SHORT), ("timesformer_b16", timesformer, EIGHT), ("vjepa2_l16", vjepa2, LITTLE)
        )
    }  # fmt: skip


def main() -> None:
    """Everything, as JSON."""
    # The published wheel's operators are built for a GPU; no model here uses one, but its import describes them.
    real, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
    import torchvision

    torch.library.register_fake = real
    import open_clip
    import timm
    from transformers import CLIPVisionConfig, CLIPVisionModel

    models, video = torchvision.models, torchvision.models.video
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    clip: Any = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=224, patch_size=16, hidden_act="quick_gelu"))
    resnet, vit = models.resnet50(), models.vit_b_16()
    body = torch.nn.Sequential(*list(resnet.children())[:-1])
    heads, vit_features = vit.heads, {}
    heads.register_forward_pre_hook(lambda _, inputs: vit_features.update(found=inputs[0]))
    small = timm.create_model("vit_small_patch16_224")

    openai = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)

    def of_openai(x: Tensor) -> Tensor:
        openai.visual.proj = None  # features before the projection to the space of texts
        return openai.visual(x)

    def of_vit(x: Tensor) -> Tensor:
        vit(x)
        return vit_features["found"]

    found = {
        "r2plus1d_18": told("torchvision", (m := video.r2plus1d_18()), {"logits": (CLIP, m)}),
        "r3d_18": told("torchvision", (n := video.r3d_18()), {"logits": (CLIP, n)}),
        "vtn_resnet50": told("torchvision", resnet, {"features": (SMALL, lambda x: body(x).flatten(1))}),
        "vtn_vit_b16": told("torchvision", vit, {"features": (FRAME, of_vit)}),
        "vtn_vit_s16": told("timm", small, {"features": (FRAME, lambda x: small.forward_features(x)[:, 0])}),
        "vtn_clip_vit_b16": told(
            "transformers",
            clip,
            {
                "features": (FRAME, lambda x: clip(x).pooler_output),
                "small": (SMALL, lambda x: clip(x, interpolate_pos_encoding=True).pooler_output),
            },
        ),
        "vtn_clip_vit_b16/openai": told("open_clip_torch", openai, {"features": (FRAME, of_openai)}),
        **of_clips(),
    }
    json.dump(found, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
