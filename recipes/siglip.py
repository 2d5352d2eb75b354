"""A small SigLIP of stock `transformers`, trained on scenes: a dual-encoder teacher for `recipes/siglip.sh`.

python recipes/siglip.py runs/siglip
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, ViTModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dlip.checkpoints.load import load_model, locate
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import as_pil
from dlip.training.config import TrainConfig
from dlip.training.muon import Muon
from dlip.training.optimizer import BETAS, learning_rate

IMAGE_ENCODER = "scenes/encoders/128x5/vit"
"""What the image encoder is initialized from."""
TOKENIZER_OF = "scenes/teacher"
MAX_TEXT = 30
"""Tokens to which SigLIP pads every text; captions of scenes are shorter."""
_VIT = {
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "layers.": "encoder.layers.",
    "attention.o_proj": "self_attn.out_proj",
    "attention.": "self_attn.",
    "layernorm_before": "layer_norm1",
    "layernorm_after": "layer_norm2",
    "layernorm.": "post_layernorm.",
}


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the scenes teacher, as a stock tokenizer."""
    _, own = load_model(TOKENIZER_OF)
    return PreTrainedTokenizerFast(
        tokenizer_object=own.fast, pad_token="[PAD]", unk_token="[UNK]", model_max_length=MAX_TEXT,
        model_input_names=["input_ids"],
    )  # fmt: skip


def new_siglip(vocabulary: int) -> SiglipModel:
    """An untrained SigLIP whose image encoder is `IMAGE_ENCODER` without its class token."""
    vit = ViTModel.from_pretrained(locate(IMAGE_ENCODER), add_pooling_layer=False, dtype=torch.float32)
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    sizes = {name: getattr(vit.config, name) for name in shared}
    of_images = {name: getattr(vit.config, name) for name in ("image_size", "patch_size", "layer_norm_eps")}
    of_texts = dict(vocab_size=vocabulary, max_position_embeddings=MAX_TEXT, bos_token_id=0, eos_token_id=0)
    model = SiglipModel(
        SiglipConfig(
            vision_config=sizes | of_images, text_config=sizes | of_texts | {"projection_size": sizes["hidden_size"]}
        )
    )
    vision = dict(model.vision_model.named_parameters())
    with torch.no_grad():
        for name, weight in vit.named_parameters():
            if name == "embeddings.position_embeddings":
                vision["embeddings.position_embedding.weight"].copy_(weight[0, 1:])
            elif name != "embeddings.cls_token":
                for vit_name, siglip_name in _VIT.items():
                    name = name.replace(vit_name, siglip_name, 1)
                vision[name].copy_(weight)
    return model


def new_image_processor(side: int) -> SiglipImageProcessorPil:
    """Normalize squares of `side` px as the ViT was trained."""
    return SiglipImageProcessorPil(size={"height": side, "width": side}, image_mean=(0.5,) * 3, image_std=(0.25,) * 3)


def train(folder: Path, steps: int, batch_size: int, seed: int = 0) -> None:
    """Train by the contrast of the images and captions of a batch; write `folder` as `save_pretrained` does."""
    torch.manual_seed(seed)
    choice, scenes, tokenizer = random.Random(seed), Scenes("train-large"), new_tokenizer()
    model = new_siglip(len(tokenizer)).train()
    image_processor = new_image_processor(model.config.vision_config.image_size)
    config = TrainConfig(steps=steps, lr=3e-3, schedule="cosine", warmup=min(100, steps // 2))
    matrices = {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    rest = [p for name, p in model.named_parameters() if name not in matrices]
    groups = [{"params": list(matrices.values()), "weight_decay": 0.05}], [{"params": rest, "weight_decay": 0.0}]
    optimizer = Muon(*groups, config.lr, BETAS)
    order = scenes.order(seed, epoch=0)
    for step in (progress := tqdm(range(steps), unit="step")):
        items = [scenes[order[i % len(order)]] for i in range(step * batch_size, (step + 1) * batch_size)]
        texts = [choice.choice(item.captions) for item in items]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                **image_processor([as_pil(item.image) for item in items], return_tensors="pt"),
                **tokenizer(texts, padding="max_length", return_tensors="pt"),
            ).logits_per_text.float()
        own = torch.arange(batch_size)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config, len(order))
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=96)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.steps, arguments.batch_size)
