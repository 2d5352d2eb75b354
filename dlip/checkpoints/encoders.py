"""Published encoders that one side of a model is initialized from: ViT and DeiT for images, BERT and MiniLM for texts.

Each reader returns the weights under this project's names, and a `ModelConfig` with the source's sizes.
Layouts: Hugging Face's (`model_type` vit, deit or bert, of transformers 4 and 5) and timm's (a file or a hub folder).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dlip.checkpoints.blip import count_layers, head_counts, rename_timm
from dlip.checkpoints.tensors import read_state
from dlip.common.files import read_json
from dlip.models.config import ModelConfig

Encoder = tuple[dict[str, Tensor], ModelConfig]
TEXT_FIELDS = {"text_width": "hidden_size", "text_heads": "num_attention_heads", "text_mlp": "intermediate_size"}
IMAGE_FIELDS = {"image_width": "hidden_size", "image_heads": "num_attention_heads", "image_mlp": "intermediate_size"}
_VIT = (  # Hugging Face's names, in files and in state dicts of transformers 5 -> timm's
    (r"(?:encoder\.)?layers?\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:o_proj|output\.dense)", r"blocks.\1.attn.proj"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)", r"blocks.\1.mlp.fc1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc2|output\.dense)", r"blocks.\1.mlp.fc2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)", r"blocks.\1.attn.\2"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"layernorm", "norm"),
)


def read_bert(folder: Path, like: ModelConfig) -> Encoder:
    """A BERT's weights for the text encoder, its self-attention and LM head for the decoder, as BLIP starts from one.

    The embedding of segment 0 is added to the positions, which gives the same sums.
    """
    tensors = {name.removeprefix("bert."): tensor for name, tensor in read_state(folder).items()}
    tensors = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): t for name, t in tensors.items()}
    positions = "embeddings.position_embeddings.weight"
    tensors[positions] = tensors[positions] + tensors.pop("embeddings.token_type_embeddings.weight")[0]
    named = {f"{part}.{name}": t for part in ("text_encoder", "text_decoder.bert") for name, t in tensors.items()}
    named |= {f"text_decoder.{name}": tensor for name, tensor in tensors.items() if name.startswith("cls.")}
    return named, _sizes(folder, TEXT_FIELDS, like)


def read_vit(folder: Path, like: ModelConfig) -> Encoder:
    """A ViT or DeiT in Hugging Face's layout, without its distillation token."""
    tensors = {}
    for name, tensor in read_state(folder).items():
        stem, _, kind = re.sub(r"^(vit|deit)\.", "", name).rpartition(".")
        renamed = [match.expand(new) for pattern, new in _VIT if (match := re.fullmatch(pattern, stem))]
        tensors[f"{renamed[0] if renamed else stem}.{kind}"] = tensor
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [tensors.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        tensors[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    tensors |= {"cls_token": tensors["embeddings.cls_token"], "pos_embed": tensors["embeddings.position_embeddings"]}
    if "embeddings.distillation_token" in tensors:
        tensors["dist_token"] = tensors["embeddings.distillation_token"]
    return rename_timm(_without_distillation_token(tensors), folder), _sizes(folder, IMAGE_FIELDS, like)


def read_timm(path: Path, like: ModelConfig, heads: Mapping[str, int]) -> Encoder:
    """A ViT or DeiT in timm's layout. heads: image_heads, where the user states it; else see `head_counts`."""
    tensors = rename_timm(_without_distillation_token(read_state(path)), path)
    width = tensors["vision_model.embeddings.class_embedding"].shape[-1]
    mlp = len(tensors["vision_model.encoder.layers.0.mlp.fc1.bias"])
    layers = count_layers(tensors, "vision_model.encoder.layers.")
    heads = head_counts({"image": (width, layers, mlp)}, heads, path)
    return tensors, replace(like, image_width=width, image_mlp=mlp, **heads)


def is_timm(path: Path) -> bool:
    """Whether a file is a ViT with timm's names."""
    return "blocks.0.attn.qkv.weight" in read_state(path)


def _without_distillation_token(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the position of DeiT's distillation token, which follows the class token's."""
    if "dist_token" not in tensors:
        return tensors
    positions = tensors["pos_embed"]  # [1, 2 + P, D]
    return {**tensors, "pos_embed": torch.cat([positions[:, :1], positions[:, 2:]], 1)}


def _sizes(folder: Path, names: dict[str, str], like: ModelConfig) -> ModelConfig:
    config = read_json(folder / "config.json")
    return replace(like, **{own: config[stock] for own, stock in names.items()})
