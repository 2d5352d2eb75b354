"""What several test modules share."""

import pytest
import torch

from dlip.config import ModelConfig, scenes_size
from dlip.data.batch import Batch
from dlip.data.scenes import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.model import Med
from dlip.vlm import VLM


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    """Eight pictures with captions and questions."""
    return Scenes("test", size=8)


@pytest.fixture(scope="session")
def tiny(scenes) -> VLM:
    """An untrained model that reads them, its weights far enough from the start that its scores differ."""
    texts = [text for item in scenes for text in item.captions]
    texts += [text for item in scenes for q in item.questions for text in (q.text, *q.answers)]
    tokenizer = Tokenizer.train(texts, 200)
    torch.manual_seed(0)
    med = Med(scenes_size(32, 2, 2, vocab_size=len(tokenizer), fusion_layers=(1,)))
    for parameter in med.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return VLM(med, tokenizer, "tiny")


SMALL = dict(
    image_size=16, patch_size=8, image_width=16, image_heads=2, image_layers=2, text_width=16, text_heads=4,
    text_layers=2, embed_dim=8, vocab_size=40, max_positions=32, max_text=12, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
)  # fmt: skip


@pytest.fixture(scope="session")
def make_med():
    """Makes an untrained model, its weights far from the start, so that no difference hides in small numbers."""

    def make(seed: int = 0, **changes) -> Med:
        torch.manual_seed(seed)
        med = Med(ModelConfig(**{**SMALL, **changes})).eval()
        for name, parameter in med.named_parameters():
            if name != "temp":
                parameter.data += 0.2 * torch.randn_like(parameter)
        return med

    return make


def random_texts(n: int, length: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [n, length]: `first`, words, [SEP], pads; the first text is the longest, the second has one word."""
    ends = torch.randint(2, length, (n, 1))
    ends[0], ends[1] = length - 1, 2
    at = torch.arange(length)
    ids = torch.randint(7, 40, (n, length)).masked_fill(at == ends, 3).masked_fill(at > ends, 0)
    ids[:, 0] = first
    return ids, at <= ends


@pytest.fixture(scope="session")
def make_batch():
    """Makes a batch with captions, questions and answers of different lengths."""

    def make(seed: int = 0, size: int = 5, pixels: int = 16, lengths: tuple[int, int, int] = (8, 6, 5)) -> Batch:
        torch.manual_seed(seed)
        images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8)
        texts = [random_texts(size, length, first) for length, first in zip(lengths, (2, 2, 5), strict=True)]
        return Batch(images, torch.arange(size) + 100, *texts[0], *texts[1], *texts[2])

    return make
