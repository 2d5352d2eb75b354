"""The same weights in stock `transformers`' BLIP classes."""

from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedModel,
)

from dlip.common.errors import UserError
from dlip.models.config import ModelConfig
from dlip.models.fast.precision import refuse_lowered
from dlip.models.med import Med

CLASSES = {
    "retrieval": BlipForImageTextRetrieval,
    "captioning": BlipForConditionalGeneration,
    "vqa": BlipForQuestionAnswering,
}


def stock_config(c: ModelConfig) -> BlipConfig:
    """The configuration of the stock classes. Raises UserError for what they have no place for."""
    if c.fusion_layers != tuple(range(c.text_layers)):
        raise UserError("stock transformers has cross-attention in every text layer; this model lacks it in some")
    vision = dict(
        hidden_size=c.image_width, intermediate_size=c.image_mlp, num_hidden_layers=c.image_layers,
        num_attention_heads=c.image_heads, image_size=c.image_size, patch_size=c.patch_size,
        layer_norm_eps=c.image_eps, attention_dropout=0.0, hidden_act="gelu",
    )  # fmt: skip
    text = dict(
        hidden_size=c.text_width, intermediate_size=c.text_mlp, num_hidden_layers=c.text_layers,
        num_attention_heads=c.text_heads, vocab_size=c.vocab_size, max_position_embeddings=c.max_positions,
        layer_norm_eps=c.text_eps, encoder_hidden_size=c.image_width, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=c.pad_id, bos_token_id=c.dec_id, eos_token_id=c.sep_id, sep_token_id=c.sep_id,
        tie_word_embeddings=c.tie_head,
    )  # fmt: skip
    return BlipConfig(
        vision_config=vision, text_config=text, image_text_hidden_size=c.embed_dim, tie_word_embeddings=c.tie_head
    )


def to_stock(med: Med, task: str) -> PreTrainedModel:
    """The stock class for "retrieval", "captioning" or "vqa" with this model's weights, in eval mode.

    Stock retrieval and VQA read texts from [CLS]: their scores equal ours where `enc_id` is `cls_id`, or where the
    caller puts [ENC] in the first place. Raises UserError for a model that the class has no place for.
    """
    if task == "vqa" and med.config.image_width != med.config.text_width:
        raise UserError("stock BlipForQuestionAnswering needs equal widths of picture and text; this model's differ")
    stock = CLASSES[task](stock_config(med.config))
    ours = refuse_lowered(med, "export").state_dict()
    stock.load_state_dict({name: ours[name] for name in stock.state_dict()})
    return stock.eval()
