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
from dlip.evaluation.tasks.vqa import log_likelihood
from dlip.models.composite import Composite
from dlip.models.generate import generate
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
    captions = tiny.caption(images, **options)
    assert captions == [tiny.caption([image], **options)[0] for image in images]
    assert len(set(captions)) > 1


def test_captions_end_where_the_model_stops_reading(tiny, images):
    """As `dlip.evaluate` generates them, though the model would go on."""
    longest = {}
    for name, options in (("default", {}), ("max_text", dict(max_new_tokens=tiny.med.config.max_text))):
        with torch.no_grad():
            tiny.med.text_decoder.cls.predictions.bias[tiny.med.config.sep_id] -= 100
            longest[name] = tiny.caption(images, **options)
            tiny.med.text_decoder.cls.predictions.bias[tiny.med.config.sep_id] += 100
    assert longest["default"] == longest["max_text"] and len(longest["default"][0].split()) > 20


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
    for options in (
        dict(n=0),
        dict(num_beams=0),
        dict(max_new_tokens=0),
        dict(top_p=0),
        dict(top_p=2),
        dict(top_p=nan),
    ):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=f"{name} is {value}; give"):
            tiny.captions(images, **{"n": 1, **options})
    with pytest.raises(UserError, match="3 beams cannot give 4 captions"):
        tiny.captions(images, 4)


def test_a_device_that_torch_does_not_know_is_refused(tiny):
    with pytest.raises(UserError, match="the model cannot be moved to gpu .* name a device that torch finds here"):
        tiny.to("gpu")


def test_a_caption_continues_its_prompt_without_repeating_it(tiny, images):
    greedy, prompt = tiny.captions(images, 1, 1, 4), "a red circle"
    continued = tiny.captions(images, 1, 1, 4, prompt=prompt)
    assert continued != greedy and tiny.captions(images, 1, 1, 4, prompt="") == greedy  # tiny has no prompt itself
    ids = [tiny.med.config.dec_id, *tiny.tokenizer.encode([prompt])[0][0, 1:-1].tolist()]
    rows = generate(tiny.med, tiny.image_states(images), None, torch.tensor([ids] * 4), 1, 4)
    assert continued == [[text] for text in tiny.tokenizer.decode([row[len(ids) :] for row in rows])]
    with pytest.raises(UserError, match="the prompt has .* tokens; give at most"):
        tiny.captions(images, 1, prompt="red " * 500)


def test_answers_do_not_depend_on_the_batch(tiny, images, questions):
    answers = tiny.answer(images, questions)
    assert answers == [tiny.answer([i], [q])[0] for i, q in zip(images, questions, strict=True)]
    assert len(set(answers)) > 1 and len({len(q) for q in questions}) > 1
    assert answers != tiny.answer(images[::-1], questions)  # they depend on the images


def test_top_answers_have_their_probability(images, questions):
    """Equal to that of a forward pass over each answer, with a trained model, whose answers are words."""
    vlm = dlip.load("scenes/student")
    ranked = vlm.top_answers(images, questions, k=5)
    for image, question, top in zip(images, questions, ranked, strict=True):
        assert len(top) == 5 and top == sorted(top, key=lambda answer: -answer[1])
        assert vlm.answer([image], [question], num_beams=5)[0] in [text for text, _ in top]
        ids, mask = vlm.tokenize([question])
        answer_ids, answer_mask = vlm.tokenizer.encode([text for text, p in top if p > 1e-3], first="[DEC]")
        with torch.no_grad():
            states = vlm.med.question_states(vlm.med.fuse(ids, mask, vlm.image_states([image])))
            likely = log_likelihood(vlm.med, answer_ids, answer_mask, states, mask).exp()
        assert len(likely) and [p for _, p in top if p > 1e-3] == pytest.approx(likely.tolist(), rel=1e-4)
    assert vlm.top_answers([], []) == [] and 0.9 < sum(p for _, p in ranked[0]) <= 1


def test_scores_do_not_depend_on_the_batch(tiny, images):
    table, matches = tiny.similarity(images, TEXTS), tiny.match(images, TEXTS)
    for i, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        torch.testing.assert_close(tiny.similarity([image], [text])[0, 0], table[i, i])
        torch.testing.assert_close(tiny.match([image], [text])[0], matches[i])


def test_repeated_image_is_encoded_once(tiny, images, questions, monkeypatch):
    encode, rows = Med.encode_image, []
    monkeypatch.setattr(Med, "encode_image", lambda med, pixels: rows.append(len(pixels)) or encode(med, pixels))
    first, second = images[:2]
    mixed = [second, first, second, second]
    matches, answers = tiny.match(mixed, TEXTS), tiny.answer(mixed, questions)
    assert rows == [2, 2]
    copies = [image.copy() for image in mixed]
    torch.testing.assert_close(matches, tiny.match(copies, TEXTS))
    assert answers == tiny.answer(copies, questions) and rows == [2, 2, 4, 4]


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


def test_wrong_inputs_are_refused(tiny, images, tmp_path):
    with pytest.raises(UserError, match="4 images and 1 question;"):
        tiny.answer(images, ["how many?"])
    with pytest.raises(UserError, match="2 images and 4 texts"):
        tiny.match(images[:2], TEXTS)
    with pytest.raises(UserError, match=r"list of images.*\[image\]"):
        tiny.caption("photo.png")
    with pytest.raises(UserError, match="list of texts"):
        tiny.similarity(images, "a red circle")
    with pytest.raises(UserError, match="list of questions"):
        tiny.answer(images[:1], "?")
    for texts in ([None] * 4, [3] * 4):
        with pytest.raises(UserError, match=f"the text {texts[0]} is not a string"):
            tiny.match(images, texts)
    with pytest.raises(UserError, match="missing.png"):
        tiny.caption([tmp_path / "missing.png"])
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="broken.png"):
        tiny.similarity([tmp_path / "broken.png"], TEXTS)


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


def test_prompt_is_not_part_of_the_caption(tiny, images):
    """A model with the same weights and a prompt: it reads the prompt first and does not repeat it."""
    words = tiny.tokenizer.encode(["a picture"])[0][0, 1:-1].tolist()
    med = Med(replace(tiny.med.config, prompt_ids=tuple(words)))
    med.load_state_dict(tiny.med.state_dict())
    prompted = VLM(med, tiny.tokenizer)
    for beams in (1, 3):
        captions = prompted.captions(images, 1, beams, 5)
        assert captions == tiny.captions(images, 1, beams, 5, prompt="a picture") != tiny.captions(images, 1, beams, 5)


def test_moves_to_a_device(tiny):
    moved = VLM(copy.deepcopy(tiny.med), tiny.tokenizer)
    assert moved.to("meta") is moved and moved.device.type == "meta"


def test_methods_run_without_dropout_and_gradients(tiny, images, questions):
    med = Med(replace(tiny.med.config, dropout=0.5))
    med.load_state_dict(tiny.med.state_dict())
    vlm = VLM(med, tiny.tokenizer)
    for call in (
        lambda m: m.similarity(images, TEXTS).tolist(), lambda m: m.match(images, TEXTS).tolist(),
        lambda m: m.caption(images), lambda m: m.answer(images, questions),
    ):  # fmt: skip
        med.train()
        assert call(vlm) == call(tiny)
    assert not vlm.match(images, TEXTS).requires_grad and not vlm.similarity(images, TEXTS).requires_grad


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
