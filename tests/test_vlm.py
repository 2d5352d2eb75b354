"""The public methods of a model against its parts; results do not depend on the rest of the batch."""

import copy
from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from PIL import Image

import dlip
from dlip.common.errors import UserError
from dlip.models.composite import Composite
from dlip.models.med import Med
from dlip.vlm import VLM

TEXTS = ["a red circle", "a large blue star left of a small green square above a cross", "nothing", "a"]


@pytest.fixture(scope="module")
def images(scenes) -> list[Image.Image]:
    return [Image.fromarray(scenes[i].image) for i in range(4)]


@pytest.fixture(scope="module")
def questions(scenes) -> list[str]:
    return [scenes[i].questions[i].text for i in range(4)]


@torch.no_grad()
def test_similarity_is_the_cosine_of_the_two_encoders(tiny, images):
    scores = tiny.similarity(images, TEXTS[:3])
    med = tiny.med
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    image = med.vision_proj(med.encode_image(med.normalize(pixels))[:, 0])
    rows = []
    for text in TEXTS[:3]:
        ids, mask = tiny.tokenizer.encode([text])
        rows.append(med.text_proj(med.encode_text(ids, mask)[:, 0]))
    expected = torch.nn.functional.cosine_similarity(image[:, None], torch.cat(rows)[None], dim=-1)
    assert scores.shape == (4, 3)
    torch.testing.assert_close(scores, expected)


@torch.no_grad()
def test_match_is_the_probability_of_index_one(tiny, images):
    scores = tiny.match(images, TEXTS)
    logits = tiny.med.match_logits(tiny.med.fuse(*tiny.tokenize(TEXTS), tiny.image_states(images)))
    torch.testing.assert_close(scores, 1 / (1 + (logits[:, 0] - logits[:, 1]).exp()))
    assert scores.shape == (4,) and scores.std() > 0


@pytest.mark.parametrize("options", [dict(), dict(num_beams=1), dict(num_beams=1, top_p=1e-6), dict(max_new_tokens=3)])
def test_captions_do_not_depend_on_the_batch(tiny, images, options):
    """One image has one caption, many have a list."""
    captions = tiny.caption(images, **options)
    assert captions == [tiny.caption(image, **options) for image in images]
    assert captions == tiny.caption(images, **options, batch_size=3) and len(set(captions)) > 1


def test_a_composite_writes_captions_as_long_as_its_writer(tiny, images):
    writer, other = (Med(replace(tiny.med.config, max_text=longest)) for longest in (6, 20))
    writer.load_state_dict(tiny.med.state_dict())
    writer.abilities, other.abilities = frozenset({"lm"}), frozenset({"itc"})
    joined = VLM(Composite([other, writer]), tiny.tokenizer)
    assert joined.caption(images) == tiny.caption(images, max_new_tokens=6)


def test_several_captions_of_an_image(tiny, images):
    best = tiny.captions(images, 3, num_beams=4, max_new_tokens=5)
    assert [texts[0] for texts in best] == tiny.caption(images, num_beams=4, max_new_tokens=5)
    assert all(len(set(texts)) == 3 for texts in best)
    torch.manual_seed(0)
    sampled = tiny.captions(images, 6, top_p=0.99, max_new_tokens=5)
    assert [len(texts) for texts in sampled] == [6] * 4 and len(set(sampled[0])) > 1
    assert tiny.captions([], 3) == []
    for name, value in (("n", 0), ("num_beams", 0), ("max_new_tokens", 0), ("top_p", 0), ("top_p", 2), ("top_p", nan)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            tiny.captions(images, **{"n": 1, name: value})
    with pytest.raises(UserError, match="3 beams"):
        tiny.captions(images, 4)


def test_answers_do_not_depend_on_the_batch(tiny, images, questions):
    answers = tiny.answer(images, questions)
    assert answers == [tiny.answer(i, q) for i, q in zip(images, questions, strict=True)]
    assert len(set(answers)) > 1 and len({len(q) for q in questions}) > 1
    assert answers != tiny.answer(images[::-1], questions)  # they depend on the images
    assert tiny.answer(images[0], questions) == [tiny.answer(images[0], q) for q in questions]


def test_top_answers_have_their_probability(tiny, images, questions):
    """Equal to that of a forward pass over each answer."""
    for image, question, top in zip(images, questions, tiny.top_answers(images, questions, k=5), strict=True):
        assert len(top) == 5 and top == sorted(top, key=lambda answer: -answer[1])
        assert tiny.answer(image, question, num_beams=5) in [text for text, _ in top]
        with torch.no_grad():
            states = tiny.med.question_states(tiny.med.fuse(*tiny.tokenize([question]), tiny.image_states([image])))
            for text, probability in top:
                ids, _ = tiny.tokenizer.encode([text], first="[DEC]")
                likely = tiny.med.decode(ids, states)[0].log_softmax(-1)[range(ids.shape[1] - 1), ids[0, 1:]]
                if tiny.tokenizer.decode(ids) == [text] and ids.shape[1] < 10:
                    assert probability <= likely.sum().exp().item() * 1.001
    assert tiny.top_answers([], []) == []


def test_scores_do_not_depend_on_the_batch(tiny, images):
    table, matches = tiny.similarity(images, TEXTS), tiny.match(images, TEXTS)
    for i, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        torch.testing.assert_close(tiny.similarity([image], [text])[0, 0], table[i, i])
        torch.testing.assert_close(tiny.match([image], [text])[0], matches[i])


def test_repeated_image_is_encoded_once(tiny, images, questions, monkeypatch):
    """At most `batch_size` different images at a time."""
    encode, rows = Med.encode_image, []
    monkeypatch.setattr(Med, "encode_image", lambda med, pixels: rows.append(len(pixels)) or encode(med, pixels))
    first, second = images[:2]
    mixed = [second, first, second, second]
    matches, answers = tiny.match(mixed, TEXTS), tiny.answer(mixed, questions)
    assert rows == [2, 2]
    copies = [image.copy() for image in mixed]
    torch.testing.assert_close(matches, tiny.match(copies, TEXTS, batch_size=3))
    assert answers == tiny.answer(copies, questions) and rows == [2, 2, 3, 1, 4]


def test_paths_and_images_of_any_mode_give_the_same(tiny, images, tmp_path):
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = [tmp_path / "0.png", str(tmp_path / "1.png"), images[2].convert("RGBA"), np.array(images[3])]
    assert torch.equal(tiny.pixels(paths, tiny.med), tiny.pixels(images, tiny.med))
    assert tiny.caption(iter(paths)) == tiny.caption(images)
    torch.testing.assert_close(tiny.match(paths, TEXTS), tiny.match(images, TEXTS))
    grey = Image.new("L", (100, 30), 128)
    assert torch.equal(tiny.pixels([grey], tiny.med), tiny.med.normalize(torch.full((1, 3, 64, 64), 128)))


def test_empty_inputs(tiny, images):
    assert tiny.caption([]) == tiny.answer([], []) == []
    assert tiny.match([], []).shape == (0,)
    assert tiny.similarity([], TEXTS).shape == (0, 4) and tiny.similarity(images, []).shape == (4, 0)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda vlm, images: vlm.answer(images, ["how many?"]), "4 images and 1 question"),
        (lambda vlm, images: vlm.match(images[:2], TEXTS), "2 images and 4 texts"),
        (lambda vlm, images: vlm.match(images, [None] * 4), "None"),
        (lambda vlm, images: vlm.caption(images, batch_size=0), "batch_size"),
        (lambda vlm, images: vlm.caption("missing.png"), "missing.png"),
        (lambda vlm, images: vlm.similarity([__file__], TEXTS), "test_vlm.py"),
        (lambda vlm, images: vlm.to("gpu"), "gpu"),
        (lambda vlm, images: vlm.to(torch.float16), "float16"),
    ],
)
def test_wrong_inputs_are_refused(tiny, images, call, named):
    with pytest.raises(UserError, match=named):
        call(tiny, images)


def test_unknown_words_have_an_unknown_character(tiny):
    assert tiny.unknown_words("a собака red Ünique circle") == ["собака", "Ünique"] and tiny.unknown_words(" ") == []


def test_long_texts_are_truncated(tiny, images):
    long = "a red circle " * 100
    ids, mask = tiny.tokenize([long])
    assert ids.shape == (1, tiny.med.config.max_text) and mask.all()
    assert tiny.match(images[:1], [long]).shape == (1,)
    assert tiny.words_read(long) == tiny.med.config.max_text - 2
    assert [tiny.words_read(text) for text in (" a red\ncircle ", "", "half a \ud800 character")] == [3, 0, 4]
    short = Med(replace(tiny.med.config, max_text=12))  # one of several in a composite
    short.tokenizer = tiny.tokenizer
    assert tiny.words_read(long, short) == 10


def test_moves_and_converts_as_torch_does(tiny, images):
    moved = VLM(copy.deepcopy(tiny.med), tiny.tokenizer)
    low = moved.to(torch.bfloat16).similarity(images, TEXTS)
    assert moved.med.temp.dtype == torch.bfloat16 and moved.med.image_mean.dtype == torch.float32
    torch.testing.assert_close(low.float(), tiny.similarity(images, TEXTS), atol=0.05, rtol=0)
    assert moved.to("meta", torch.float32) is moved and moved.device.type == "meta"
    assert moved.med.temp.dtype == torch.float32


def test_save_and_load(tiny, images, tmp_path):
    tiny.save(tmp_path / "model")
    again = dlip.load(str(tmp_path / "model"))
    assert again.name == str(tmp_path / "model") and again.caption(images) == tiny.caption(images)
    assert torch.equal(again.similarity(images, TEXTS), tiny.similarity(images, TEXTS))


def test_a_model_does_not_replace_one_with_a_record(tiny, tmp_path):
    """Which would then describe another model."""
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError, match="record.json describes the model that is there"):
        tiny.save(tmp_path)
    assert not (tmp_path / "config.json").exists()
