"""WordPiece with BERT's normalization; its vocabulary comes from the data or a checkpoint, nothing is downloaded."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from dlip.common.errors import UserError
from dlip.common.files import write_atomically
from dlip.common.text import join_words, replace_surrogates

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]


class Tokenizer:
    """Texts to padded ids and back. [DEC] and [ENC] are BLIP's additions to BERT's vocabulary."""

    def __init__(self, fast: FastTokenizer):
        fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
        self.fast = fast
        self.pad_id, self.cls_id, self.sep_id, self.dec_id, self.enc_id = (
            fast.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "[ENC]")
        )
        self.unknown_id: int | None = fast.token_to_id("[UNK]")
        self.first_id: int = self.enc_id if fast.encode("").ids[:1] == [self.enc_id] else self.cls_id
        """What texts begin with by the file's own rule, [CLS] or [ENC]."""
        fast.no_padding()
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)]
        )

    @cached_property
    def vocabulary(self) -> str:
        """SHA-256 of all tokens and their ids: equal for tokenizers whose ids mean the same."""
        return hashlib.sha256(json.dumps(sorted(self.fast.get_vocab().items())).encode()).hexdigest()

    def __len__(self) -> int:
        return self.fast.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Special tokens, every character, and the most frequent words up to `vocab_size` tokens in all.

        Words are in lower case and keep their accents: without them Hindi loses its vowels and Korean its syllables.
        The same texts always give the same ids, which the library's own trainer does not promise.
        """
        fast = _bert(models.WordPiece(unk_token="[UNK]"), strip_accents=False)
        counts = Counter()
        for text in texts:
            words = fast.pre_tokenizer.pre_tokenize_str(fast.normalizer.normalize_str(replace_surrogates(text)))
            counts.update(word for word, _ in words)
        letters = sorted({letter for word in counts for letter in word})
        pieces = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        pieces += [word for word in frequent if len(word) > 1][: max(0, vocab_size - len(pieces))]
        model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
        return cls(_bert(model, strip_accents=False))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """From `tokenizer.json` or BERT's `vocab.txt` in `folder`. Raises UserError if neither can be read."""
        folder = Path(folder)
        try:
            if (folder / "tokenizer.json").is_file():
                return cls(_checked(FastTokenizer.from_file(str(folder / "tokenizer.json"))))
            if (folder / "vocab.txt").is_file():
                return cls(_checked(_bert(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))))
        except Exception as error:  # the library raises plain ones
            raise UserError(f"the tokenizer in {folder} cannot be read ({str(error)[:300]}); copy it again") from None
        raise UserError(f"{folder} holds neither tokenizer.json nor vocab.txt; copy the teacher's tokenizer there")

    def save(self, folder: str | Path) -> None:
        """Write `folder`/tokenizer.json atomically."""
        write_atomically(Path(folder) / "tokenizer.json", lambda temporary: self.fast.save(str(temporary)))

    def rules(self) -> dict:
        """Everything that decides how a text is tokenized, except truncation and padding."""
        settings = json.loads(self.fast.to_str())
        return {name: rule for name, rule in settings.items() if name not in ("truncation", "padding")}

    def encode(
        self, texts: list[str], first: str = "[CLS]", max_length: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [B, T] and mask bool [B, T]: `first` ... [SEP], truncated to `max_length` and padded."""
        if max_length:
            self.fast.enable_truncation(max_length)
        else:
            self.fast.no_truncation()
        rows = [encoding.ids for encoding in self.fast.encode_batch_fast([replace_surrogates(text) for text in texts])]
        longest = max(map(len, rows), default=0)
        ids = torch.full((len(rows), longest), self.pad_id)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor([self.fast.token_to_id(first), *tokens[1:]])
        lengths = torch.tensor([len(tokens) for tokens in rows], dtype=torch.long)
        return ids, torch.arange(longest) < lengths[:, None]

    def decode(self, ids: torch.Tensor | list[list[int]]) -> list[str]:
        """Texts of rows of ids, without special tokens."""
        rows = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        return [join_words(text) for text in self.fast.decode_batch(rows, skip_special_tokens=True)]


def _checked(fast: FastTokenizer) -> FastTokenizer:
    """The tokenizer itself. Raises ValueError if it is not BERT's kind or an id exceeds the vocabulary."""
    kinds = (models.WordPiece, normalizers.BertNormalizer, pre_tokenizers.BertPreTokenizer, decoders.WordPiece)
    for part, kind in zip((fast.model, fast.normalizer, fast.pre_tokenizer, fast.decoder), kinds, strict=True):
        if type(part) is not kind:
            raise ValueError(f"it has {type(part).__name__}; only BERT's {kind.__name__} is supported")
    vocabulary = fast.get_vocab()
    token = max(vocabulary, key=vocabulary.get)
    if vocabulary[token] >= len(vocabulary):
        raise ValueError(f"the id of {token!r} is {vocabulary[token]}, but the vocabulary has {len(vocabulary)} tokens")
    return fast


def _bert(model: models.WordPiece, strip_accents: bool | None = None) -> FastTokenizer:
    fast = FastTokenizer(model)
    fast.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=strip_accents)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast
