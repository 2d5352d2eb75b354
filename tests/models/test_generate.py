"""Decoding against a slow reference without cache or batches; parity with transformers is in test_parity.py."""

from collections import Counter

import pytest
import torch

from dlip.models.generate import beam_search, generate, nucleus, until_sep

SEP = 3
START = torch.tensor([[5]])


def next_scores(med, row: list[int], context) -> torch.Tensor:
    """Log-probabilities of the token after `row`, from a pass over the whole text."""
    return med.decode(torch.tensor([row]), context)[0, -1].log_softmax(-1)


def slow_greedy(med, context, row: list[int], new: int) -> list[int]:
    for _ in range(new):
        token = next_scores(med, row, context).argmax().item()
        if token == SEP:
            break
        row = [*row, token]
    return row


def slow_beams(med, context, prompt: list[int], k: int, new: int) -> list[int]:
    """Of 2k candidates a step, those among the first k that end are finished, the best k others continue; a finished
    text scores its mean log-probability, and the search ends when no running one beats the worst of k finished."""
    running, finished = [(0.0, prompt)], []
    for step in range(1, new + 1):
        options = []
        for total, row in running:
            scores = next_scores(med, row, context)
            options += [(total + scores[token].item(), [*row, token]) for token in range(len(scores))]
        options = sorted(options, key=lambda option: -option[0])[: 2 * k]
        ended = [(t / step, row) for t, row in options[:k] if row[-1] == SEP or step == new]
        finished = sorted([*finished, *ended], key=lambda option: -option[0])[:k]
        running = [(t, row) for t, row in options if row[-1] != SEP][:k]
        if len(finished) == k and running[0][0] / step <= finished[-1][0]:
            break
    best = finished[0][1]
    return best[:-1] if best[-1] == SEP else best


@pytest.fixture(params=[{}, dict(image_width=24, image_heads=3, text_layers=3, fusion_layers=(1,), tie_decoder=False)])
def med(request, make_med):
    """A model that ends its texts at different lengths."""
    med = make_med(2, **request.param)
    med.text_decoder.cls.predictions.bias.data[SEP] += 1.0
    return med


def contexts(med, n: int, size: int = 5) -> torch.Tensor:
    torch.manual_seed(n)
    return torch.randn(n, size, med.config.image_width)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [[5], [5, 9, 11]])
def test_greedy_equals_the_reference(med, prompt):
    context = contexts(med, 6)
    texts = generate(med, context, None, torch.tensor([prompt] * 6), max_new_tokens=9)
    assert texts == [slow_greedy(med, context[i : i + 1], prompt, 9) for i in range(6)]


@torch.no_grad()
@pytest.mark.parametrize("beams", [2, 3])
def test_beam_search_equals_the_reference(make_med, beams):
    lengths = set()
    for seed in range(8):
        med = make_med(seed, image_width=24, image_heads=3, text_layers=3, fusion_layers=(1,))
        med.text_decoder.cls.predictions.bias.data[SEP] += seed % 4  # from truncated texts to those that end at once
        context = contexts(med, 3)
        texts = generate(med, context, None, START.expand(3, -1), beams, 7)
        assert texts == [slow_beams(med, context[i : i + 1], [5], beams, 7) for i in range(3)]
        lengths |= {len(row) for row in texts}
    assert max(lengths) == 8 and len(lengths) > 2


@torch.no_grad()
@pytest.mark.parametrize("options", [dict(), dict(num_beams=3), dict(top_p=0.0)])
def test_batch_equals_one_by_one(med, options):
    """Also with contexts of different lengths: masked positions have no effect."""
    context, lengths = contexts(med, 6), [5, 3, 2, 5, 4, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    texts = generate(med, context, mask, START.expand(6, -1), max_new_tokens=8, **options)
    single = [
        generate(med, context[i : i + 1, :n], None, START, max_new_tokens=8, **options) for i, n in enumerate(lengths)
    ]
    assert texts == [row for (row,) in single]
    assert len(set(map(tuple, texts))) > 1


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_minimum_and_maximum_of_new_tokens(med, beams):
    med.text_decoder.cls.predictions.bias.data[SEP] += 30.0  # a model that would end at once
    context, start = contexts(med, 3), START.expand(3, -1)
    assert generate(med, context, None, start, beams, 6) == [[5]] * 3
    for least in (2, 6):
        rows = generate(med, context, None, start, beams, 6, min_new_tokens=least)
        assert {len(row) for row in rows} == {1 + least} and not any(SEP in row for row in rows)
    med.text_decoder.cls.predictions.bias.data[SEP] -= 60.0  # one that never ends
    assert {len(row) for row in generate(med, context, None, start, beams, 4)} == {5}
    assert {len(row) for row in generate(med, context, None, start, beams, 100)} == {med.config.max_positions}
    assert generate(med, context, None, start, beams, 0) == [[5]] * 3


def test_nucleus_samples_the_smallest_set_in_proportion():
    """Of 0.4, 0.3, 0.2, 0.1 the first two reach 0.65; three reach 0.75; 1 allows every token."""
    torch.manual_seed(0)
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(4000, 4)
    for top_p, allowed in ((0.3, {1: 0.4}), (0.65, {1: 0.4, 3: 0.3}), (0.75, {1: 0.4, 3: 0.3, 2: 0.2})):
        drawn = Counter(nucleus(scores, top_p).tolist())
        assert drawn.keys() == allowed.keys()
        for token, mass in allowed.items():
            assert drawn[token] / 4000 == pytest.approx(mass / sum(allowed.values()), abs=0.03)
    assert nucleus(scores, 1.0).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [dict(num_beams=1), dict(num_beams=4), dict(top_p=0.1)])
def test_no_ngram_occurs_twice(med, options):
    """Not even one of the prompt."""
    med.text_decoder.cls.predictions.bias.data[SEP] -= 100
    prompt = torch.tensor([[5, 9, 11]]).expand(3, -1)
    for size, length in ((0, 2), (1, 1), (2, 2)):
        texts = generate(med, contexts(med, 3), None, prompt, max_new_tokens=14, no_repeat_ngram_size=size, **options)
        for text in texts:
            most = max(Counter(zip(*(text[i:] for i in range(length)), strict=False)).values())
            assert most == 1 if size else most > 1


@pytest.mark.parametrize("new", [0, 6])
def test_several_texts_of_a_prompt(med, new):
    context, prompt = contexts(med, 3), START.expand(3, -1)
    finished = beam_search(med, context, None, prompt, 4, 6)
    best = [until_sep(text, SEP, 1) for one in finished for _, text in one[:3]]
    beams = generate(med, context, None, prompt, 4, new, n=3)
    assert beams == (best if new else [[5]] * 9)
    torch.manual_seed(0)
    samples = generate(med, context, None, prompt, 1, new, 0.9, n=2)
    torch.manual_seed(0)
    repeated = generate(med, context.repeat_interleave(2, 0), None, START.expand(6, -1), 1, new, 0.9)
    assert samples == repeated and len(samples) == 6
