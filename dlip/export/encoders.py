"""Export of one side of a model to stock `transformers`: the image encoder as a ViT, the text side as a BERT.

`--init-from` reads both again (dlip/checkpoints/encoders.py).
"""

import re
from pathlib import Path

import torch
from PIL.Image import Resampling
from transformers import BertConfig, BertLMHeadModel, ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dlip.common.errors import UserError
from dlip.export.card import card
from dlip.export.transformers import image_options, processor, record_of, replace_folder, text_options
from dlip.models.fast.precision import require_fp32_blip
from dlip.models.med import Med
from dlip.vlm import VLM

_VIT = (
    (r"embeddings\.cls_token", "embeddings.class_embedding"),
    (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
    (r"embeddings\.patch_embeddings\.projection", "embeddings.patch_embedding"),
    (r"layers\.(\d+)\.attention\.o_proj", r"encoder.layers.\1.self_attn.projection"),
    (r"layers\.(\d+)\.layernorm_before", r"encoder.layers.\1.layer_norm1"),
    (r"layers\.(\d+)\.layernorm_after", r"encoder.layers.\1.layer_norm2"),
    (r"layers\.(\d+)\.mlp", r"encoder.layers.\1.mlp"),
    (r"layernorm", "post_layernorm"),
)
"""Stock names of a ViT's weights -> names here."""


def to_encoder(
    name: str, out: str | Path, kind: str, half: bool = False, license: str | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write `out`/vit or `out`/bert, which the stock class loads, whole or not at all.

    kind: "vit" or "bert". half: store fp16 weights. Returns the folder by its kind, and an empty dict, as nothing is
    skipped. Raises UserError for a composite, a model in lower precision, and as `STOCK_ENCODERS` do.
    """
    vlm, folder = VLM.load(name), Path(out) / kind
    med = require_fp32_blip(vlm.med, "export")
    stock, c = STOCK_ENCODERS[kind](med), med.config
    if kind == "vit":
        preparation = ViTImageProcessorPil(
            size={"height": c.image_size, "width": c.image_size}, image_mean=list(c.image_mean),
            image_std=list(c.image_std), resample=Resampling.BICUBIC,
        )  # fmt: skip
    else:
        preparation = processor(vlm.tokenizer, c, "captioning").tokenizer
    about = card("encoder.md", vlm, record_of(name), "transformers", [], license, stock_class=type(stock).__name__)

    def write(new: Path) -> None:
        (stock.half() if half else stock).save_pretrained(new)
        preparation.save_pretrained(new)
        (new / "README.md").write_text(about)

    replace_folder(folder, write)
    return {kind: folder}, {}


@torch.no_grad()
def to_vit(med: Med) -> ViTModel:
    """The image encoder as a stock ViT without a pooler, in eval mode; its last states are the encoder's."""
    if med.config.image_backbone:
        raise UserError("a stock ViT has no backbone; export the model with --to onnx")
    stock = ViTModel(ViTConfig(**image_options(med.config), qkv_bias=True), add_pooling_layer=False)
    own = dict(med.vision_model.named_parameters())
    for name, parameter in stock.named_parameters():
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)", name):
            qkv = own[f"encoder.layers.{match[1]}.self_attn.qkv.{match[3]}"]
            parameter.copy_(qkv.chunk(3)["qkv".index(match[2])])
            continue
        for pattern, here in _VIT:
            name = re.sub(rf"^{pattern}(?=\.|$)", here, name)
        parameter.copy_(own[name].view_as(parameter))
    return stock.eval()


@torch.no_grad()
def to_bert(med: Med) -> BertLMHeadModel:
    """The decoder as a stock BERT language model, in eval mode. Raises UserError if it has cross-attention."""
    if med.config.fusion_layers:
        raise UserError("a stock BERT reads texts alone, and this model has cross-attention; train one without it")
    stock = BertLMHeadModel(BertConfig(**text_options(med.config), type_vocab_size=1, is_decoder=True))
    own = med.text_decoder.state_dict()
    own["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(1, med.config.text_width)
    stock.load_state_dict({name: own[name] for name in stock.state_dict()})
    return stock.eval()


STOCK_ENCODERS = {"vit": to_vit, "bert": to_bert}
"""Kind of export -> function of a model; each raises UserError for a model that the stock class does not support."""
