"""Small random image-text-to-text models of transformers, in the folders that they publish."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.helpers import shaken

WORDS = (
    "<pad> <s> </s> <unk> <image> USER : ASSISTANT a red star cat Describe this image in one short sentence .".split()
)
WORDS += [f"w{i}" for i in range(20)]
TEMPLATE = """{% for message in messages %}<s> USER : {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT : {% endif %}"""
SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(**SIZES, image_size=16, patch_size=8)
TEXT = dict(**SIZES, vocab_size=len(WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=2)


def llava(folder: Path, chat: bool = True):
    """A decoder that returns its prompt, with a chat template or without."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT, num_key_value_heads=2),
        image_token_index=WORDS.index("<image>"), vision_feature_select_strategy="full", vision_feature_layer=-1,
    )  # fmt: skip
    processor = LlavaProcessor(
        _images(), _tokenizer(), patch_size=8, vision_feature_select_strategy="full", num_additional_image_tokens=1,
        chat_template=TEMPLATE if chat else None,
    )  # fmt: skip
    return _saved(LlavaForConditionalGeneration(config), processor, folder)


def git(folder: Path):
    """A decoder that needs no prompt."""
    torch.manual_seed(0)
    config = GitConfig(vision_config=VISION, **TEXT, max_position_embeddings=64)
    return _saved(GitForCausalLM(config), GitProcessor(_images(), _tokenizer()), folder)


def _saved(model, processor, folder: Path):
    shaken(model, 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


def _images() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def _tokenizer() -> PreTrainedTokenizerFast:
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
