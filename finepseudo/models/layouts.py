"""The layouts of public weights: how each library names what our encoders have. No torch: tables and names alone.

A rule is a pattern of a whole name and what it is called here. `#q`, `#k`, `#v` at its end mark thirds of one tensor;
`<x,y>` in it names the equal parts of one that is several here.
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
    lacks: tuple[str, ...] = ()  # names of others that have all of its marks
    rules: Rules = _ANY
    roots: tuple[str, ...] = ("",)  # the encoder is what stands below one of these
    beside: Rules = ()  # rules of names that do not stand below the root, such as a classifier's; others are left aside
    aside: str = r"(fc|head|heads\.head)\.(weight|bias)"  # names that no encoder takes, where it has no such part
    size: int = 224  # height and width of the frames that the public weights saw
    frames: int = 1
    fps: float = 0  # of the clips that they saw; 0: single pictures


def _vit(
    *,
    class_embedding: str,
    positions: str,
    patches: str,
    before: str = "",
    layer: str,
    norms: tuple[str, str],
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
        norms: the first and the second of a layer.
        qkv: with a group `third`, q, k or v, where these are tensors of their own.
        first, second: of the MLP.
    """
    end, third = r"(?P<end>.+)", r"#\g<third>" if "(?P<third>" in qkv else ""
    return (
        (class_embedding, "tokens.class_F"),
        (positions, "tokens.position_LF"),
        (patches + end, r"patches.project.\g<end>"),
        *([(before + end, r"norm_in.\g<end>")] if before else []),
        *((layer + norm + end, rf"layers.\g<number>.norm{place}.\g<end>") for place, norm in enumerate(norms, 1)),
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
    norms=(r"norm1\.", r"norm2\."),
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
    norms=(r"ln_1\.", r"ln_2\."),
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
    norms=(r"ln_1\.", r"ln_2\."),
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
    norms=(r"layer_norm1\.", r"layer_norm2\."),
    qkv=r"self_attn\.(?P<third>[qkv])_proj\.",
    out=r"self_attn\.out_proj\.",
    first=r"mlp\.fc1\.",
    second=r"mlp\.fc2\.",
    last=r"post_layernorm\.",
)
_HUB_VIT = _vit(
    class_embedding=r"embeddings\.cls_token",
    positions=r"embeddings\.position_embeddings",
    patches=r"embeddings\.patch_embeddings\.projection\.",
    layer=r"encoder\.layer\.(?P<number>\d+)\.",
    norms=(r"layernorm_before\.", r"layernorm_after\."),
    qkv=r"attention\.attention\.(?P<third>[qkv])(?:uery|ey|alue)\.",
    out=r"attention\.output\.dense\.",
    first=r"intermediate\.dense\.",
    second=r"output\.dense\.",
    last=r"layernorm\.",
)
_FC = ((r"(?:head|classifier)\.(weight|bias)", r"fc.\1"),)
_HUB_LAYER = r"encoder.layer.\1"
# Original names of parts of the layers, as the hub calls them.
_LAYER_PARTS = (
    (r"blocks\.(\d+)\.norm1\.(.+)", rf"{_HUB_LAYER}.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.+)", rf"{_HUB_LAYER}.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", rf"{_HUB_LAYER}.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.+)", rf"{_HUB_LAYER}.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.+)", rf"{_HUB_LAYER}.output.dense.\2"),
    (r"patch_embed\.proj\.(.+)", r"embeddings.patch_embeddings.projection.\1"),
)
_VIDEOMAE = (
    (r"blocks\.(\d+)\.attn\.qkv\.weight", rf"{_HUB_LAYER}.attention.attention.<query,key,value>.weight"),
    (r"blocks\.(\d+)\.attn\.q_bias", rf"{_HUB_LAYER}.attention.attention.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", rf"{_HUB_LAYER}.attention.attention.value.bias"),
    (r"fc_norm\..+", r"\g<0>"),
    *(_LAYER_PARTS + _FC),
)
_HUB_VIDEOMAE = (
    (r"(encoder\.layer\.\d+\.attention\.attention)\.q_bias", r"\1.query.bias"),
    (r"(encoder\.layer\.\d+\.attention\.attention)\.v_bias", r"\1.value.bias"),
    (r"(?:encoder\.layer|embeddings\.patch_embeddings)\..+", r"\g<0>"),
)
_TIMESFORMER = (
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"time_embed", r"embeddings.time_embeddings"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", rf"{_HUB_LAYER}.attention.attention.qkv.\2"),
    (r"blocks\.(\d+)\.temporal_attn\.qkv\.(.+)", rf"{_HUB_LAYER}.temporal_attention.attention.qkv.\2"),
    (r"blocks\.(\d+)\.temporal_attn\.proj\.(.+)", rf"{_HUB_LAYER}.temporal_attention.output.dense.\2"),
    (r"blocks\.(\d+)\.temporal_norm1\.(.+)", rf"{_HUB_LAYER}.temporal_layernorm.\2"),
    (r"blocks\.(\d+)\.temporal_fc\.(.+)", rf"{_HUB_LAYER}.temporal_dense.\2"),
    (r"norm\.(.+)", r"layernorm.\1"),
    *(_LAYER_PARTS + _FC),
)
_VJEPA2 = (
    (r"patch_embed\.proj\.(.+)", r"encoder.embeddings.patch_embeddings.proj.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", rf"{_HUB_LAYER}.attention.<query,key,value>.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", rf"{_HUB_LAYER}.attention.proj.\2"),
    (r"blocks\.(\d+)\.((?:norm[12]|mlp\.fc[12])\..+)", rf"{_HUB_LAYER}.\2"),
    (r"norm\.(.+)", r"encoder.layernorm.\1"),
)
_CLIPS: dict[str, Any] = {"size": 112, "frames": 16, "fps": 15}
_VIDEOMAE_CLIPS: dict[str, Any] = {"frames": 16, "fps": 7.5}  # every fourth frame of 30 in a second
_TIMESFORMER_CLIPS: dict[str, Any] = {"frames": 8, "fps": 1}
_VJEPA2_CLIPS: dict[str, Any] = {"size": 256, "frames": 64, "fps": 4}

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
        lacks=("time_embed", "blocks.0.attn.q_bias"),
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
        encoders=("vtn_clip_vit_b16", "aim_vit_b16"),
        marks=("class_embedding", "conv1.weight", "ln_pre.weight", "transformer.resblocks.0.attn.in_proj_weight"),
        rules=_OPENAI,
        roots=("visual.", ""),
        aside=r"proj",
    ),
    Layout(
        name="CLIP (hub)",
        encoders=("vtn_clip_vit_b16", "aim_vit_b16"),
        marks=("embeddings.class_embedding", "pre_layrnorm.weight", "encoder.layers.0.self_attn.q_proj.weight"),
        rules=_HUB_CLIP,
        roots=("vision_model.", ""),
        aside=r"embeddings\.position_ids",
    ),
    Layout(
        name="ViT (hub)",
        encoders=("vtn_vit_s16", "vtn_vit_b16"),
        marks=(
            "embeddings.cls_token",
            "embeddings.position_embeddings",
            "encoder.layer.0.attention.attention.query.weight",
        ),
        rules=_HUB_VIT,
        roots=("vit.", ""),
        aside=r"embeddings\.mask_token|(pooler\.dense|classifier)\.(weight|bias)",
    ),
    Layout(
        name="VideoMAE (original)",
        encoders=("videomae_b16",),
        marks=("patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight"),
        lacks=("cls_token",),
        rules=_VIDEOMAE,
        roots=("", "encoder."),
        aside=r"norm\.(weight|bias)",
        **_VIDEOMAE_CLIPS,
    ),
    Layout(
        name="VideoMAE (hub)",
        encoders=("videomae_b16",),
        marks=("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.attention.attention.query.weight"),
        lacks=("embeddings.cls_token",),
        rules=_HUB_VIDEOMAE,
        roots=("videomae.", ""),
        beside=((r"fc_norm\..+", r"\g<0>"), *_FC),
        aside=r"layernorm\.(weight|bias)",
        **_VIDEOMAE_CLIPS,
    ),
    Layout(
        name="TimeSformer (original)",
        encoders=("timesformer_b16",),
        marks=("cls_token", "pos_embed", "time_embed", "blocks.0.temporal_attn.qkv.weight"),
        rules=_TIMESFORMER,
        aside="",
        **_TIMESFORMER_CLIPS,
    ),
    Layout(
        name="TimeSformer (hub)",
        encoders=("timesformer_b16",),
        marks=("embeddings.time_embeddings", "encoder.layer.0.temporal_attention.attention.qkv.weight"),
        rules=((r"(?:embeddings|encoder\.layer|layernorm)\..+", r"\g<0>"),),
        roots=("timesformer.", ""),
        beside=_FC,
        aside="",
        **_TIMESFORMER_CLIPS,
    ),
    Layout(
        name="V-JEPA 2 (original)",
        encoders=("vjepa2_l16",),
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"),
        lacks=("cls_token",),
        rules=_VJEPA2,
        aside=r"pos_embed",  # the files have one, the model does not: its positions are rotary
        **_VJEPA2_CLIPS,
    ),
    Layout(
        name="V-JEPA 2 (hub)",
        encoders=("vjepa2_l16",),
        marks=("encoder.embeddings.patch_embeddings.proj.weight", "encoder.layer.0.attention.query.weight"),
        rules=((r"encoder\..+", r"\g<0>"),),
        roots=("vjepa2.", ""),
        beside=((r"pooler\..+", r"\g<0>"), *_FC),
        aside=r"predictor\..+",
        **_VJEPA2_CLIPS,
    ),
)


@dataclass(frozen=True)
class Recognised:
    """A layout, and what stands before each of its names in a file."""

    layout: Layout
    wrappers: str
    root: str
    share: float = 1.0  # of its marks that the file has; one less for each name that it should not have

    @property
    def before(self) -> str:
        return self.wrappers + self.root

    def called(self, name: str) -> str | None:
        """What a name of the file is called in the encoder; None for what the layout leaves aside.

        Raises KeyError: the layout knows no such name.
        """
        below, inner = name.startswith(self.before), name.removeprefix(self.before)
        if not below:
            inner = name.removeprefix(self.wrappers)
        for pattern, replacement in self.layout.rules if below else self.layout.beside:
            if match := re.fullmatch(pattern, inner):
                return match.expand(replacement)
        if not below or re.fullmatch(self.layout.aside, inner):
            return None
        raise KeyError(name)


def recognise(names: Collection[str]) -> list[Recognised]:
    """Every layout, the one with the largest share of its marks first; of equal ones that with fewer wrappers."""
    found = [max(_ways(layout, names), key=lambda way: way.share) for layout in LAYOUTS]
    return sorted(found, key=lambda way: -way.share)


def _ways(layout: Layout, names: Collection[str]) -> Iterator[Recognised]:
    for depth, root in itertools.product(range(len(WRAPPERS) + 1), layout.roots):
        for wrappers in itertools.permutations(WRAPPERS, depth):
            there = {mark for mark in (*layout.marks, *layout.lacks) if "".join(wrappers) + root + mark in names}
            count = max(0, len(there & {*layout.marks}) - len(there & {*layout.lacks}))
            yield Recognised(layout, "".join(wrappers), root, count / len(layout.marks))
