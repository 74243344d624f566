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


_TIMM: Rules = (
    (r"cls_token", r"tokens.class_F"),
    (r"pos_embed", r"tokens.position_LF"),
    (r"patch_embed\.proj\.(.+)", r"patches.project.\1"),
    (r"blocks\.(\d+)\.(norm[12]\..+)", r"layers.\1.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", r"layers.\1.attention.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"layers.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.+)", r"layers.\1.mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.+)", r"layers.\1.mlp.2.\2"),
    (r"norm\.(.+)", r"norm.\1"),
)
_TORCHVISION: Rules = (
    (r"class_token", r"tokens.class_F"),
    (r"encoder\.pos_embedding", r"tokens.position_LF"),
    (r"conv_proj\.(.+)", r"patches.project.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.+)", r"layers.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.+)", r"layers.\1.attention.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.+)", r"layers.\1.attention.out.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.+)", r"layers.\1.mlp.0.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.+)", r"layers.\1.mlp.2.\2"),
    (r"encoder\.ln\.(.+)", r"norm.\1"),
)
_OPENAI: Rules = (
    (r"class_embedding", r"tokens.class_F"),
    (r"positional_embedding", r"tokens.position_LF"),
    (r"conv1\.(.+)", r"patches.project.\1"),
    (r"ln_pre\.(.+)", r"norm_in.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"layers.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)", r"layers.\1.attention.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"layers.\1.attention.out.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"layers.\1.mlp.0.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"layers.\1.mlp.2.\2"),
    (r"ln_post\.(.+)", r"norm.\1"),
)
_HUB_CLIP: Rules = (
    (r"embeddings\.class_embedding", r"tokens.class_F"),
    (r"embeddings\.position_embedding\.weight", r"tokens.position_LF"),
    (r"embeddings\.patch_embedding\.(.+)", r"patches.project.\1"),
    (r"pre_layrnorm\.(.+)", r"norm_in.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"layers.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(.+)", r"layers.\1.attention.qkv.\3#\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"layers.\1.attention.out.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.+)", r"layers.\1.mlp.0.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.+)", r"layers.\1.mlp.2.\2"),
    (r"post_layernorm\.(.+)", r"norm.\1"),
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
