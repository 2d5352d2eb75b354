"""BLIP checkpoints in both published layouts, made of the stock classes."""

import json
import re

import torch
from transformers import BlipConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from dlip.export.transformers import CLASSES
from dlip.models.config import ModelConfig
from tests.helpers import shaken

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a picture of red star cat what is it ?".split() + [f"w{i}" for i in range(40)]
DEC, ENC, VOCAB = len(WORDS), len(WORDS) + 1, len(WORDS) + 2
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
TEXTS = ["a red star", "a cat", "what is it ?"]
CLIP = dict(mean=ModelConfig().image_mean, std=ModelConfig().image_std)
MED_CONFIG = dict(hidden_size=128, num_hidden_layers=2, intermediate_size=256, hidden_act="gelu", layer_norm_eps=1e-12,
                  num_attention_heads=2)  # fmt: skip


def stock(kind: str, width: int = 128, size: int = 32, eps: float = 1e-5, heads: tuple[int, int] | None = None):
    """One of the stock classes with weights far from their initialization; heads of 64 channels unless given."""
    torch.manual_seed(0)
    image_heads, text_heads = heads or (width // 64, 2)
    vision = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=image_heads,
                  image_size=size, patch_size=8, layer_norm_eps=eps)  # fmt: skip
    text = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=text_heads,
                vocab_size=VOCAB, max_position_embeddings=64, bos_token_id=DEC, eos_token_id=3, sep_token_id=3,
                pad_token_id=0)  # fmt: skip
    model = CLASSES[kind](BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=16)).eval()
    return shaken(model)


def stock_folder(model, folder, weights: str = "safetensors"):
    """A checkpoint's folder as the hub has it."""
    model.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def pixels(images, mean=MEAN, std=STD, size: int = 32):
    """As the stock processor makes them."""
    processor = BlipImageProcessorPil(image_mean=mean, image_std=std, size={"height": size, "width": size})
    return processor(images, return_tensors="pt")["pixel_values"]


def until_end(rows: torch.Tensor, model) -> list[str]:
    return model.tokenizer.decode([row[: row.index(3)] if 3 in row else row for row in rows.tolist()])


def to_original_names(state: dict) -> dict:
    """Rename stock names to the original's, by hand."""
    pairs = [("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
             ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
             ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
             ("vision_model.post_layernorm", "visual_encoder.norm"),
             ("vision_model.encoder.layers", "visual_encoder.blocks"),
             (".self_attn.projection", ".attn.proj"), (".self_attn.qkv", ".attn.qkv"), (".layer_norm1", ".norm1"),
             (".layer_norm2", ".norm2")]  # fmt: skip
    out = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = name.replace(new, old)
        out[name] = tensor.clone()
    return out


def with_training_state(state: dict) -> dict:
    """Momentum copies and queues, as pre-training and retrieval files hold them, all wrong on purpose."""
    copies = {re.sub(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.", r"\1_m.", name): tensor + 1
              for name, tensor in state.items() if not name.startswith(("text_decoder", "itm"))}  # fmt: skip
    queues = {"image_queue": torch.randn(16, 8), "text_queue": torch.randn(16, 8), "queue_ptr": torch.zeros(1).long(),
              "temp": torch.tensor(0.0321)}  # fmt: skip
    return {**state, **copies, **queues, "text_encoder.embeddings.position_ids": torch.arange(64)[None]}


def write(state: dict, folder, name: str = "model.pth"):
    folder.mkdir(exist_ok=True)
    torch.save({"model": state, "epoch": 3}, folder / name)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    return folder / name


def named(path, width: int = 128) -> str:
    """The name of an original file whose image heads have 64 channels."""
    return f"{path}:image_heads={width // 64}"


def with_enc(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(ids[:, :1], ENC), ids[:, 1:]], 1)
