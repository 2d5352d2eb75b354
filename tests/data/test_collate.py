"""Examples as batches: ids, masks and pads; what is drawn depends on the seed, the epoch and the image."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dlip.data.batch import Example, Question
from dlip.data.collate import Collate
from dlip.data.tokenizer import Tokenizer
from tests.helpers import differences

WORDS = ["a red cat", "a blue dog sleeps here", "one", "two", "left of the tree", "what is it", "who", "yes", "no"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS, 100)


def item(image_id: int, captions=(), questions=(), image=None) -> Example:
    image = np.full((8, 8, 3), image_id % 256, np.uint8) if image is None else image
    return Example(image, image_id, list(captions), [Question(text, list(answers)) for text, *answers in questions])


def photo(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)


def test_shapes_types_and_padding(tokenizer):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    rows = [
        item(5, ["a red cat"], [("who", "a red cat")], pixels),
        item(6, ["a blue dog sleeps here"], [("what is it", "two")]),
    ]
    batch = Collate(tokenizer, 8)(rows)
    assert batch.images.shape == (2, 3, 8, 8) and batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), pixels) and batch.images[1].unique().tolist() == [6]
    assert batch.image_id.tolist() == [5, 6] and batch.image_id.dtype == torch.int64
    cls, sep, dec, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.dec_id, tokenizer.pad_id
    for ids, mask, first, lengths in (
        (batch.ids, batch.mask, cls, [5, 7]),
        (batch.question_ids, batch.question_mask, cls, [3, 5]),
        (batch.answer_ids, batch.answer_mask, dec, [5, 3]),
    ):
        assert ids.shape == mask.shape == (2, max(lengths)) and ids.dtype == torch.int64 and mask.dtype == torch.bool
        assert mask.sum(1).tolist() == lengths and ids[:, 0].tolist() == [first] * 2
        for row, length in enumerate(lengths):
            assert mask[row, :length].all() and ids[row, length - 1] == sep and (ids[row, length:] == pad).all()
    assert tokenizer.decode(batch.ids) == ["a red cat", "a blue dog sleeps here"]
    assert tokenizer.decode(batch.question_ids) == ["who", "what is it"]
    assert tokenizer.decode(batch.answer_ids) == ["a red cat", "two"]
    assert Collate(tokenizer, 8, max_text=4)(rows).ids.shape == (2, 4)


def test_rows_without_text_have_only_a_first_token(tokenizer):
    """All batches compute the same losses; a blank caption counts as none, a question without answer too."""
    rows = [item(0, ["one"]), item(1, [" "], [("who", "two")]), item(2, [], [("what is it",)])]
    batch, pad = Collate(tokenizer, 8)(rows), tokenizer.pad_id
    assert batch.ids[1:].tolist() == [[tokenizer.cls_id, pad, pad]] * 2
    assert batch.mask[:, 0].all() and batch.captioned.tolist() == [True, False, False]
    assert tokenizer.decode(batch.question_ids) == ["who"] and batch.question_rows.tolist() == [1]
    batch = Collate(tokenizer, 8)(rows[2:])
    assert batch.question_ids.tolist() == [[tokenizer.cls_id, pad]] and batch.question_rows.tolist() == [0]
    assert batch.answer_ids.tolist() == [[tokenizer.dec_id, pad]]


def test_draws_are_uniform_and_answers_by_frequency(tokenizer):
    row = item(3, ["one", "two"], [("who", "no", "yes", "yes", "yes"), ("what is it", "one", "two")])

    def drawn(epochs: int, **kwargs) -> list[tuple[str, str, str]]:
        batches = (Collate(tokenizer, 8, epoch=epoch, **kwargs)([row]) for epoch in range(epochs))
        return [tuple(tokenizer.decode(x)[0] for x in (b.ids, b.question_ids, b.answer_ids)) for b in batches]

    draws = drawn(800)
    captions, questions = Counter(draw[0] for draw in draws), Counter(draw[1] for draw in draws)
    assert 330 < captions["one"] < 470 and 330 < questions["who"] < 470  # 400 +- 5 standard deviations
    answers = Counter(draw[1:] for draw in draws)
    assert set(answers) == {("who", "no"), ("who", "yes"), ("what is it", "one"), ("what is it", "two")}
    assert 0.63 < answers["who", "yes"] / questions["who"] < 0.87  # 3/4 of them
    assert draws[:20] == drawn(20) != drawn(20, seed=1)


def test_draws_do_not_depend_on_the_batch(tokenizer):
    """A resumed run, another order and another process draw the same."""
    rows = [item(2**52 + i, ["one", "two", "who"], [("who", "yes", "no")], photo(i)) for i in range(6)]
    for i, row in enumerate(rows):
        row.tags = np.eye(6, dtype=np.float32)[i]
    collate = Collate(tokenizer, 16, augment=True, flip=True, seed=3, epoch=2)
    whole = collate(rows)
    assert differences(whole, collate(rows)) == differences(whole, pickle.loads(pickle.dumps(collate))(rows)) == []
    backwards, parts = vars(collate(rows[::-1])), [vars(collate([row])) for row in rows]
    assert whole.captions == [part["captions"][0] for part in parts] == backwards["captions"][::-1]
    for name, tensor in vars(whole).items():
        if isinstance(tensor, torch.Tensor) and name != "question_rows":
            assert torch.equal(tensor.flip(0), backwards[name]), name
            assert torch.equal(tensor, torch.cat([part[name] for part in parts])), name
    assert differences(whole, replace(collate, epoch=3)(rows))
    several = [replace(collate, seed=seed, views=2)(rows).images for seed in (0, 5)]
    assert torch.equal(*several)  # so that runs of several seeds share a feature cache


def test_captions_in_another_vocabulary(tokenizer):
    """The batch carries the texts it has the ids of; another tokenizer makes of them what it makes of the examples."""
    other = Tokenizer.train(["a red cat", "one two three"], 60)
    rows = [item(0, ["a red cat"]), item(1), item(2, ["Two"]), item(3, [" "])]
    batch = Collate(tokenizer, 8)(rows)
    assert batch.captions == ["a red cat", None, "Two", None]
    again, expected = batch.tokenized_by(other, 30), Collate(other, 8)(rows)
    assert torch.equal(again.mask, expected.mask) and again.captioned.tolist() == [True, False, True, False]
    assert torch.equal(again.ids[again.mask], expected.ids[expected.mask])


@pytest.mark.parametrize(
    ("caption", "question", "answer", "may_flip"),
    [
        ("one", "who", "yes", True),
        ("Left of the tree", "who", "yes", False),
        ("one", "what is to the right?", "yes", False),
        ("one", "who", "left", False),
        ("bright, cleft", "who", "yes", True),
    ],
)
def test_photos_with_left_or_right_in_their_texts_are_not_mirrored(tokenizer, caption, question, answer, may_flip):
    row = item(7, [caption], [(question, answer)], photo())

    def pixels(epoch, flip):
        return Collate(tokenizer, 16, augment=True, flip=flip, epoch=epoch)([row]).images[0]

    mirrored = sum(torch.equal(pixels(e, True), pixels(e, False).flip(-1)) for e in range(40))
    assert 8 < mirrored < 32 if may_flip else mirrored == 0
