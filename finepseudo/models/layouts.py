"""The layouts of public weights: how each library names what our encoders have. No torch: tables and names alone.

A rule is a pattern of a whole name and what it is called here; `#q`, `#k`, `#v` at its end mark thirds of one tensor.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

Rules = tuple[tuple[str, str], ...]

WRAPPERS = ("module.", "model.", "backbone.")
"""What a wrapper or a larger model puts before every name."""
_ANY = ((r".+", r"\g<0>"),)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Whose names, of which encoders."""

    name: str
    encoders: tuple[str, ...]
    marks: tuple[str, ...]  # names that no other layout has together
    rules: Rules = _ANY
    roots: tuple[str, ...] = ("",)  # the encoder is what stands below one of these
    aside: str = r"(fc|head|heads\.head)\.(weight|bias)"  # names that no encoder takes, where it has no such part
    size: int = 224  # height and width of the frames that the public weights saw
    frames: int = 1
    fps: int = 0  # of the clips that they saw; 0: single pictures


def _vit(
    *,
    class_embedding: str,
    positions: str,
    patches: str,
    before: str = "",
    layer: str,
    norms: str,
    qkv: str,
    out: str,
    first: str,
    second: str,
    last: str,
) -> Rules:
    """Of a Vision Transformer: patterns of what a library calls its parts, up to `weight` or `bias`.

    Args:
        before: norm before the first layer; empty: there is none.
        layer: what stands before the names of a layer, with a group `number`.
        norms: with a group `which`, 1 or 2.
        qkv: with a group `third`, q, k or v, where these are tensors of their own.
        first, second: of the MLP.
    """
    end, third = r"(?P<end>.+)", r"#\g<third>" if "(?P<third>" in qkv else ""
    return (
        (class_embedding, "tokens.class_F"),
        (positions, "tokens.position_LF"),
        (patches + end, r"patches.project.\g<end>"),
        *([(before + end, r"norm_in.\g<end>")] if before else []),
        (layer + norms + end, r"layers.\g<number>.norm\g<which>.\g<end>"),
        (layer + qkv + end, rf"layers.\g<number>.attention.qkv.\g<end>{third}"),
        (layer + out + end, r"layers.\g<number>.attention.out.\g<end>"),
        (layer + first + end, r"layers.\g<number>.mlp.0.\g<end>"),
        (layer + second + end, r"layers.\g<number>.mlp.2.\g<end>"),
        (last + end, r"norm.\g<end>"),
    )


_TIMM = _vit(
    class_embedding=r"cls_token",
    positions=r"pos_embed",
    patches=r"patch_embed\.proj\.",
    layer=r"blocks\.(?P<number>\d+)\.",
    norms=r"norm(?P<which>[12])\.",
    qkv=r"attn\.qkv\.",
    out=r"attn\.proj\.",
    first=r"mlp\.fc1\.",
    second=r"mlp\.fc2\.",
    last=r"norm\.",
)
_TORCHVISION = _vit(
    class_embedding=r"class_token",
    positions=r"encoder\.pos_embedding",
    patches=r"conv_proj\.",
    layer=r"encoder\.layers\.encoder_layer_(?P<number>\d+)\.",
    norms=r"ln_(?P<which>[12])\.",
    qkv=r"self_attention\.in_proj_",
    out=r"self_attention\.out_proj\.",
    first=r"mlp\.(?:0|linear_1)\.",
    second=r"mlp\.(?:3|linear_2)\.",
    last=r"encoder\.ln\.",
)
_OPENAI = _vit(
    class_embedding=r"class_embedding",
    positions=r"positional_embedding",
    patches=r"conv1\.",
    before=r"ln_pre\.",
    layer=r"transformer\.resblocks\.(?P<number>\d+)\.",
    norms=r"ln_(?P<which>[12])\.",
    qkv=r"attn\.in_proj_",
    out=r"attn\.out_proj\.",
    first=r"mlp\.c_fc\.",
    second=r"mlp\.c_proj\.",
    last=r"ln_post\.",
)
_HUB_CLIP = _vit(
    class_embedding=r"embeddings\.class_embedding",
    positions=r"embeddings\.position_embedding\.weight",
    patches=r"embeddings\.patch_embedding\.",
    before=r"pre_layrnorm\.",
    layer=r"encoder\.layers\.(?P<number>\d+)\.",
    norms=r"layer_norm(?P<which>[12])\.",
    qkv=r"self_attn\.(?P<third>[qkv])_proj\.",
    out=r"self_attn\.out_proj\.",
    first=r"mlp\.fc1\.",
    second=r"mlp\.fc2\.",
    last=r"post_layernorm\.",
)
_CLIPS: dict[str, Any] = {"size": 112, "frames": 16, "fps": 15}

LAYOUTS = (
    Layout(
        name="torchvision R(2+1)D",
        encoders=("r2plus1d_18",),
        marks=("stem.0.weight", "stem.3.weight", "layer1.0.conv1.0.0.weight"),
        **_CLIPS,
    ),
    Layout(name="torchvision R3D", encoders=("r3d_18",), marks=("stem.0.weight", "layer1.0.conv1.0.weight"), **_CLIPS),
    Layout(
        name="torchvision ResNet",
        encoders=("vtn_resnet18", "vtn_resnet50"),
        marks=("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.weight"),
    ),
    Layout(
        name="timm ViT",
        encoders=("vtn_vit_s16", "vtn_vit_b16"),
        marks=("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        rules=_TIMM,
    ),
    Layout(
        name="torchvision ViT",
        encoders=("vtn_vit_b16",),
        marks=("class_token", "conv_proj.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"),
        rules=_TORCHVISION,
    ),
    Layout(
        name="CLIP (OpenAI)",
        encoders=("vtn_clip_vit_b16",),
        marks=("class_embedding", "conv1.weight", "ln_pre.weight", "transformer.resblocks.0.attn.in_proj_weight"),
        rules=_OPENAI,
        roots=("visual.", ""),
        aside=r"proj",
    ),
    Layout(
        name="CLIP (hub)",
        encoders=("vtn_clip_vit_b16",),
        marks=("embeddings.class_embedding", "pre_layrnorm.weight", "encoder.layers.0.self_attn.q_proj.weight"),
        rules=_HUB_CLIP,
        roots=("vision_model.", ""),
        aside=r"embeddings\.position_ids",
    ),
)


@dataclass(frozen=True)
class Recognised:
    """A layout, and what stands before each of its names in a file."""

    layout: Layout
    before: str
    share: float = 1.0  # of its marks that the file has

    def called(self, name: str) -> str | None:
        """What a name of the file is called in the encoder; None for what the layout leaves aside.

        Raises KeyError: the layout knows no such name.
        """
        if not name.startswith(self.before):
            return None
        inner = name.removeprefix(self.before)
        for pattern, replacement in self.layout.rules:
            if match := re.fullmatch(pattern, inner):
                return match.expand(replacement)
        if re.fullmatch(self.layout.aside, inner):
            return None
        raise KeyError(name)


def recognise(names: Collection[str]) -> list[Recognised]:
    """Every layout, the one with the largest share of its marks first; of equal ones that with fewer wrappers."""
    found = [max(_ways(layout, names), key=lambda way: way.share) for layout in LAYOUTS]
    return sorted(found, key=lambda way: -way.share)


def _ways(layout: Layout, names: Collection[str]) -> Iterator[Recognised]:
    for depth, root in itertools.product(range(len(WRAPPERS) + 1), layout.roots):
        for wrappers in itertools.permutations(WRAPPERS, depth):
            before = "".join(wrappers) + root
            yield Recognised(layout, before, sum(before + mark in names for mark in layout.marks) / len(layout.marks))
