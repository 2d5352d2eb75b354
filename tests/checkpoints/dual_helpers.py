"""Folders of CLIP, SigLIP and SigLIP 2 as the hub has them, made of the stock classes: small, with random weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.helpers import shaken

WORDS = "a and red blue green star circle square cat large small above below left right of the is there".split()
FAMILIES = ("clip", "siglip", "siglip2")
SIZES = {
    "small": dict(width=32, heads=2, layers=2, patch=8, grid=4, text=24, tokens=16, shared=12),
    "wide": dict(width=48, heads=4, layers=3, patch=4, grid=6, text=32, tokens=12, shared=20),
}
CLASSES = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel),
           "siglip2": (Siglip2Config, Siglip2Model)}  # fmt: skip
PROCESSORS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil, "siglip2": Siglip2ImageProcessorPil}


def tokenizer_of(family: str, tokens: int):
    """CLIP's byte-level BPE, whose end of text also pads; for SigLIP words that end with </s>, which also pads; SigLIP
    2's BPE: with few `tokens` as its class has it, else as its published checkpoints have it."""
    letters = [chr(i) for i in range(33, 127)]
    if family == "siglip2":
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *letters]
        published = dict(padding_side="right", model_input_names=["input_ids"]) if tokens > 12 else {}
        tokenizer = Siglip2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[],
                                     model_max_length=tokens, **published)  # fmt: skip
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        )
        return tokenizer
    if family == "clip":
        pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=tokens)
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=tokens,
        model_input_names=["input_ids"],
    )  # fmt: skip


def image_processor_of(family: str, size: dict):
    """As the family's checkpoints have it: CLIP crops the middle, SigLIP squashes, SigLIP 2 keeps the aspect ratio."""
    side, mean, std = size["patch"] * size["grid"], [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    own = {"clip": dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
           "siglip": dict(size={"height": side, "width": side}),
           "siglip2": dict(patch_size=size["patch"], max_num_patches=size["grid"] ** 2)}  # fmt: skip
    return PROCESSORS[family](image_mean=mean, image_std=std, **own[family])


def stock_model(family: str, size: dict, tokenizer):
    """The stock class with weights far from their initialization."""
    torch.manual_seed(len(family))
    vision = dict(hidden_size=size["width"], intermediate_size=2 * size["width"], num_hidden_layers=size["layers"],
                  num_attention_heads=size["heads"], patch_size=size["patch"])  # fmt: skip
    vision |= ({"num_patches": size["grid"] ** 2} if family == "siglip2" else
               {"image_size": size["patch"] * size["grid"]})  # fmt: skip
    text = dict(hidden_size=size["text"], intermediate_size=2 * size["text"], num_hidden_layers=2,
                num_attention_heads=2, vocab_size=len(tokenizer), max_position_embeddings=size["tokens"],
                bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    shared = {"projection_dim": size["shared"]} if family == "clip" else {}
    text |= {} if family == "clip" else {"projection_size": size["width"]}
    config_class, model_class = CLASSES[family]
    model = shaken(model_class(config_class(vision_config=vision, text_config=text, **shared)).eval())
    model.logit_scale.data.fill_(2.0)
    return model


def dual_folder(folder: Path, family: str, size: str = "small") -> Path:
    """A checkpoint's folder as `save_pretrained` writes it."""
    tokenizer = tokenizer_of(family, SIZES[size]["tokens"])
    stock_model(family, SIZES[size], tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor_of(family, SIZES[size]).save_pretrained(folder)
    return folder
