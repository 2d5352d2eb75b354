"""Ids worked out by hand, BERT's rules against transformers' own tokenizer, and refused files."""

import json

import pytest
import torch
from transformers import BertTokenizer

from dlip.common.errors import UserError
from dlip.data.tokenizer import SPECIALS, Tokenizer

TEXTS = ["A red cat sits.", "the red dog sits", "red, red apples", "a Café"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 100)


def test_vocabulary_by_hand(tokenizer):
    """Special tokens, letters, letters inside words, then words by frequency and alphabet."""
    vocab = sorted(tokenizer.fast.get_vocab().items(), key=lambda pair: pair[1])
    letters = sorted(set("aredcatsits.thedogsitsapples,acafé"))
    words = ["red", "sits", "apples", "café", "cat", "dog", "the"]
    assert [piece for piece, _ in vocab] == [*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words]
    assert [i for _, i in vocab] == list(range(len(tokenizer)))
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.dec_id, tokenizer.enc_id) == (0, 2, 3, 5, 6)


def test_ids_mask_and_padding(tokenizer):
    vocab = tokenizer.fast.get_vocab()
    ids, mask = tokenizer.encode(["red dog", "the red cat sits"])
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.tolist() == [
        [2, vocab["red"], vocab["dog"], 3, 0, 0],
        [2, vocab["the"], vocab["red"], vocab["cat"], vocab["sits"], 3],
    ]
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    ids, mask = tokenizer.encode(["the red cat sits", "red"], first="[DEC]", max_length=4)
    assert ids[:, 0].tolist() == [5, 5] and ids.shape == (2, 4) and ids[0, -1] == 3  # a truncated text ends in [SEP]
    assert mask.sum(1).tolist() == [4, 3]
    assert tokenizer.encode(["the red cat sits"])[0].shape == (1, 6)  # truncation holds for one call
    assert tokenizer.encode([])[0].shape == (0, 0) and tokenizer.decode([]) == []


@pytest.mark.parametrize("size", [20, 200])  # words in letters, and whole words
def test_texts_of_any_language_are_kept(size):
    texts = ["größer, schöner", "con chó đang chạy", "एक कुत्ता", "개가 달린다", "一只狗在跑。", "ガラスと犬、パン"]
    texts += ["a man's dog doesn't bark", "they're here, i don't know."]
    tokenizer = Tokenizer.train(texts, size)
    assert tokenizer.decode(tokenizer.encode(texts)[0]) == texts


def test_unpaired_surrogate_is_a_question_mark(tokenizer):
    """JSON and file names may hold an unpaired surrogate, UTF-8 cannot."""
    ids, mask = tokenizer.encode(["a \ud83d b", "a ? b"])
    assert torch.equal(ids[0], ids[1]) and torch.equal(mask[0], mask[1])


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.encode(TEXTS, max_length=3)  # truncation must not be saved
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fast.get_vocab() == tokenizer.fast.get_vocab() and again.vocabulary == tokenizer.vocabulary
    assert all(torch.equal(a, b) for a, b in zip(again.encode(TEXTS), tokenizer.encode(TEXTS), strict=True))


def test_berts_vocabulary_file(tmp_path):
    """The ids of transformers' own BertTokenizer with the same vocab.txt; [DEC] and [ENC] are appended."""
    pieces = "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] the cat sit ##s cafe . ! ' t".split()
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.dec_id, loaded.enc_id, len(loaded)) == (15, 16, 17)
    texts = ["The CAT sits.", "Café!", "cat't  the\tsit", "bird cat", "猫 cat"]
    bert = BertTokenizer(str(tmp_path / "vocab.txt"))
    assert [loaded.encode([text])[0][0].tolist() for text in texts] == [bert(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    ("place", "rule", "named"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaa"}, "Replace"),
        ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("decoder", None, "NoneType"),
        ("model", {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}, "WordLevel"),
        ("version", "{", "tokenizer"),
    ],
)
def test_tokenizers_other_than_berts_are_refused(place, rule, named, tokenizer, tmp_path):
    """They could turn one letter into thousands."""
    with pytest.raises(UserError, match="vocab.txt"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {place: rule}))
    with pytest.raises(UserError, match=named):
        Tokenizer.load(tmp_path)
