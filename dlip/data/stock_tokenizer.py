"""Tokenizers of stock `transformers`, with the interface of `Tokenizer` for texts that are only read."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlip.common.errors import UserError
from dlip.common.text import replace_surrogates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECES = "spiece.model"
"""File of SigLIP's tokenizer, which stock `transformers` reads by the package sentencepiece."""


class StockTokenizer:
    """A tokenizer as its checkpoint defines it: special tokens, normalization and side of padding.

    fixed_length: pad every text to the maximum length, as SigLIP was trained, whose padding is read too.
    """

    def __init__(self, stock: "PreTrainedTokenizerBase", fixed_length: bool):
        self.stock, self.fixed_length = stock, fixed_length
        self.pad_id: int = stock.pad_token_id
        self.unknown_id: int | None = None if stock.unk_token_id == stock.eos_token_id else stock.unk_token_id
        """None where every text has tokens, as in CLIP."""
        self.vocabulary = f"{type(stock).__name__} {id(stock)}"
        """That of no other tokenizer."""

    @classmethod
    def load(cls, folder: Path, fixed_length: bool) -> "StockTokenizer":
        """The tokenizer that stock `transformers` chooses for a folder; its tokenizer.json where that needs a package
        which is not installed.

        Raises UserError if there is none, or if it has no token for padding.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        there = {name for name in ("tokenizer.json", "merges.txt", PIECES) if (folder / name).is_file()}
        if not there:  # stock makes an empty one
            raise UserError(f"{folder} has no tokenizer.json; copy the checkpoint's own there")
        stock = None
        with suppress(Exception):  # the library raises many types, as for a missing sentencepiece
            stock = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        slow = stock is not None and not stock.is_fast and PIECES not in there  # an empty one
        if (stock is None or slow) and "tokenizer.json" in there:
            with suppress(Exception):
                stock = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if stock is None:
            raise UserError(f"{folder} has no tokenizer that can be read; copy its files, or install sentencepiece")
        if stock.pad_token_id is None:
            raise UserError(f"the tokenizer of {folder} has no token for padding; copy the checkpoint's own there")
        return cls(stock, fixed_length)

    @property
    def masks_padding(self) -> bool:
        """Whether the model is told which tokens are padding; most SigLIP checkpoints are not."""
        return "attention_mask" in self.stock.model_input_names

    def encode(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [N, T] and mask bool [N, T], truncated to `max_length`; all true where padding is read too."""
        texts = [replace_surrogates(text) for text in texts]
        if not texts:
            return torch.zeros(0, max_length, dtype=torch.long), torch.zeros(0, max_length, dtype=torch.bool)
        padding = "max_length" if self.fixed_length else "longest"
        out = self.stock(texts, padding=padding, truncation=True, max_length=max_length, return_tensors="pt")
        ids = out["input_ids"]
        return ids, out["attention_mask"].bool() if self.masks_padding else torch.ones_like(ids, dtype=torch.bool)
