"""Published encoders of one side as starting points: ViT and DeiT for pictures, BERT and MiniLM for texts.

Each reader returns the weights under this project's names and the source's own sizes in place of the model's. Layouts:
Hugging Face's (`model_type` vit, deit or bert, of transformers 4 and 5) and timm's (a file, or a folder of the hub).
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.checkpoints.blip import from_timm
from dlip.checkpoints.tensors import read_state
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.models.config import ModelConfig

Found = tuple[dict[str, Tensor], ModelConfig]
TEXT = {"text_width": "hidden_size", "text_heads": "num_attention_heads", "text_mlp": "intermediate_size"}
IMAGE = {"image_width": "hidden_size", "image_heads": "num_attention_heads", "image_mlp": "intermediate_size"}
_VIT = (  # within a layer; timm's names, the state dict's of transformers 5, and those that files have
    (r"(?:encoder\.)?layers?\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:o_proj|output\.dense)", r"blocks.\1.attn.proj"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)", r"blocks.\1.mlp.fc1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc2|output\.dense)", r"blocks.\1.mlp.fc2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)", r"blocks.\1.attn.\2"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"layernorm", "norm"),
)


def bert(folder: Path, like: ModelConfig) -> Found:
    """A BERT's weights as a text encoder's, and its self-attention as the decoder's, as BLIP begins its own.

    Segment 0 is added to the positions, which gives the same sums.
    """
    tensors = {name.removeprefix("bert."): tensor for name, tensor in read_state(folder).items()}
    tensors = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): t for name, t in tensors.items()}
    positions = "embeddings.position_embeddings.weight"
    tensors[positions] = tensors[positions] + tensors.pop("embeddings.token_type_embeddings.weight")[0]
    encoder = {f"text_encoder.{name}": tensor for name, tensor in tensors.items()}
    return {**encoder, **{f"text_decoder.bert.{name}": t for name, t in tensors.items()}}, sizes(folder, TEXT, like)


def vit(folder: Path, like: ModelConfig) -> Found:
    """A ViT or DeiT in Hugging Face's layout; a distillation token goes, with its position."""
    tensors = {}
    for name, tensor in read_state(folder).items():
        name = re.sub(r"^(vit|deit)\.", "", name)
        stem, _, kind = name.rpartition(".")
        for pattern, new in _VIT:
            if match := re.fullmatch(pattern, stem):
                name = f"{match.expand(new)}.{kind}"
        tensors[name] = tensor
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [tensors.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        tensors[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    tensors |= {"cls_token": tensors["embeddings.cls_token"], "pos_embed": tensors["embeddings.position_embeddings"]}
    if "embeddings.distillation_token" in tensors:
        tensors["dist_token"] = tensors["embeddings.distillation_token"]
    return from_timm(undistilled(tensors)), sizes(folder, IMAGE, like)


def timm(path: Path, like: ModelConfig) -> Found:
    """A ViT or DeiT in timm's layout, whose heads are 64 channels wide as all of timm's are."""
    tensors = from_timm(undistilled(read_state(path)))
    width = tensors["vision_model.embeddings.class_embedding"].shape[-1]
    mlp = len(tensors["vision_model.encoder.layers.0.mlp.fc1.bias"])
    return tensors, replace(like, image_width=width, image_heads=max(1, width // 64), image_mlp=mlp)


def is_timm(path: Path) -> bool:
    """Whether a file, or a folder's weights, are a ViT in timm's names."""
    return "blocks.0.attn.qkv.weight" in read_state(path)


def undistilled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the position of DeiT's distillation token, which stands behind that of the class token."""
    if "dist_token" not in tensors:
        return tensors
    places = tensors["pos_embed"]  # [1, 2 + P, D]
    return {**tensors, "pos_embed": torch.cat([places[:, :1], places[:, 2:]], 1)}


def sizes(folder: Path, names: dict[str, str], like: ModelConfig) -> ModelConfig:
    config = read_json(folder / "config.json")
    try:
        return replace(like, **{own: config[their] for own, their in names.items()})
    except KeyError as missing:
        raise UserError(f"{folder / 'config.json'} lacks {missing}; take the whole of the model's folder") from None


def on_patch(kernel: Tensor, size: int) -> Tensor:
    """A patch embedding [D, 3, p, p] for patches of another size.

    A picture enlarged from p to `size` a patch (bilinear) gives the same tokens as before, exactly. Source: Beyer et
    al., FlexiViT (arXiv 2212.08013), section 3.4.
    """
    p = kernel.shape[-1]
    if p == size:
        return kernel
    pixels = torch.eye(p * p).view(p * p, 1, p, p)
    resize = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False).view(p * p, size * size)
    return (kernel.float().flatten(2) @ torch.linalg.pinv(resize).T).unflatten(-1, (size, size))
