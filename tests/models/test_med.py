"""Equivalent ways through the MED: maps and fused kernel, shared and repeated contexts, cached and whole texts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dlip.models.attention_kernel import attend
from dlip.models.features import ABILITIES, Want
from dlip.models.generate import Cache
from dlip.models.tasks import SOURCES
from dlip.models.token_ids import first_token

SHAPES = {
    "equal": {},
    "unequal": dict(image_width=24, image_heads=3, text_width=32),
    "some fusion": dict(text_layers=3, fusion_layers=(0, 2)),
    "untied": dict(tie_decoder=False),
    "prompted": dict(prompt_ids=(9, 11)),
}
ALL = Want(frozenset(ABILITIES), {(s, k): (0, -1) for s in SOURCES for k in ("states", "self")})
CROSS = {("fusion", "cross"): (-1,), ("decoder", "cross"): (-1,)}


@pytest.fixture(params=SHAPES)
def med(request, make_med):
    return make_med(**SHAPES[request.param])


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", ["open", "masked", "causal"])
def test_attention_with_map_equals_the_fused_kernel(masked):
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind(0)
    mask = torch.rand(2, 1, 1, 7) < 0.6 if masked == "masked" else None
    if mask is not None:
        mask[..., 0] = True
    out, none = attend(q, k, v, mask, masked == "causal", False)
    same, probs = attend(q, k, v, mask, masked == "causal", True)
    assert none is None
    torch.testing.assert_close(out, same)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 4, 7))
    torch.testing.assert_close(same, (probs @ v).transpose(1, 2).reshape(2, 7, 32))
    if masked == "masked":
        assert not probs.masked_select(~mask).any()
    if masked == "causal":
        assert not probs.triu(1).any()


# --- structure --------------------------------------------------------------------------------------------------------


def test_tied_decoder_shares_all_but_self_attention(make_med):
    med = make_med()
    own = {n for n, _ in med.text_decoder.named_parameters()} - {
        n for n, p in med.text_decoder.named_parameters() if any(p is q for q in med.text_encoder.parameters())
    }
    parts = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    attention = {
        f"bert.encoder.layer.{i}.attention.{part}.{kind}"
        for i in range(2) for part in parts for kind in ("weight", "bias")
    }  # fmt: skip
    head = {
        f"cls.predictions.transform.{part}.{kind}" for part in ("dense", "LayerNorm") for kind in ("weight", "bias")
    }
    bias = {"cls.predictions.bias"}
    assert own - {"cls.predictions.decoder.bias"} == attention | head | bias
    predictions = med.text_decoder.cls.predictions
    assert predictions.bias is predictions.decoder.bias
    assert predictions.decoder.weight is med.text_encoder.embeddings.word_embeddings.weight


# --- texts and their images -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_shared_contexts_equal_repeated_ones(med, make_batch, masked):
    """N texts over B contexts in one attention: outputs and maps as if each text had its own copy of the context."""
    batch = make_batch(size=6, lengths=(4, 5, 4))
    context = torch.randn(2, 5, med.config.image_width)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool) if masked else None
    want = Want(layers={("decoder", "cross"): (-1,), ("decoder", "states"): (-1,)})
    results = []
    for repeats in (1, 3):
        trace = med(batch, want).traces["decoder"]
        trace.kept.clear()
        cross_mask = None if mask is None else mask.repeat_interleave(repeats, 0)
        med.decode(batch.ids, context.repeat_interleave(repeats, 0), cross_mask, trace)
        results.append((trace.get("states"), trace.get("cross")))
    for result, expected in zip(*results, strict=True):
        assert len(result) == 6
        torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_first_only_equals_the_first_of_all_tokens(med, make_batch):
    batch = make_batch()
    cross = med.text_encoder.cross(med.encode_image(med.normalize(batch.images)))
    for read in (med.encode_text, lambda *texts, **how: med.fuse_with(cross, *texts, **how)):
        alone = read(batch.ids, batch.mask, first_only=True)
        torch.testing.assert_close(alone, read(batch.ids, batch.mask)[:, :1], atol=1e-5, rtol=0)
    one = [kv and (kv[0][:1], kv[1][:1]) for kv in cross]  # one image for all texts
    alone, whole = (med.fuse_with(one, batch.ids, batch.mask, first_only=first) for first in (True, False))
    torch.testing.assert_close(alone, whole[:, :1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_pads_and_other_rows_have_no_effect(med, make_batch):
    """Each row alone and unpadded gives what it gives inside the batch."""
    batch = make_batch()
    image = med.encode_image(med.normalize(batch.images))
    text, fused = med.encode_text(batch.ids, batch.mask), med.fuse(batch.ids, batch.mask, image)
    words = med.decode(batch.ids, image)
    for i, n in enumerate(batch.mask.sum(1).tolist()):
        ids, mask = batch.ids[i : i + 1, :n], batch.mask[i : i + 1, :n]
        torch.testing.assert_close(med.encode_text(ids, mask)[0], text[i, :n])
        torch.testing.assert_close(med.fuse(ids, mask, image[i : i + 1])[0], fused[i, :n])
        torch.testing.assert_close(med.decode(ids, image[i : i + 1])[0], words[i, :n])


@torch.no_grad()
def test_cached_decoding_equals_decoding_whole_texts(med, make_batch):
    batch, c = make_batch(), med.config
    image = med.encode_image(med.normalize(batch.images))
    whole = med.decode(batch.ids, image)  # [B, T, V]
    bert, cross = med.text_decoder.bert, med.text_decoder.bert.cross(image)
    cache = Cache(c.text_layers, 5, c.text_heads, 8, c.text_width // c.text_heads, image)
    ids = first_token(batch.ids, c.dec_id)
    steps = [bert(part, None, cross, causal=True, cache=cache) for part in ids.split([3, 1, 1, 1, 1, 1], 1)]
    torch.testing.assert_close(med.text_decoder.cls(torch.cat(steps, 1)), whole)
    cache.reorder(torch.tensor([1, 1, 3, 0, 2]))
    assert torch.equal(cache.store[:, :, 0], cache.store[:, :, 1]) and cache.length == 8


@pytest.fixture
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_several_threads_give_the_same_gradients_every_time(make_med, several_threads):
    """Gradients of an image that many texts are read with: another order of summation changes the last digits."""
    med = make_med(image_width=64, image_heads=4, text_width=64, image_size=48)
    ids, mask = torch.randint(7, 40, (96, 12)), torch.ones(96, 12, dtype=torch.bool)
    states, rows = torch.randn(4, 37, 64, requires_grad=True), torch.arange(96) % 4
    fused = med.fuse(ids, mask, states, rows)
    toward = torch.randn_like(fused)
    first, *others = (torch.autograd.grad(fused, states, toward, retain_graph=True)[0] for _ in range(6))
    assert all(torch.equal(first, other) for other in others)


# --- pixels -----------------------------------------------------------------------------------------------------------


# --- every size that has a name ---------------------------------------------------------------------------------------


def test_bf16_on_a_cpu_is_close_and_masks_the_same(make_med, make_batch):
    """It takes another path through attention, where pads and later tokens must have no weight either."""
    med, batch = make_med(), make_batch(size=4)
    want = Want(frozenset({"itc", "itm", "lm", "vqa"}))
    pairs = torch.arange(4), torch.arange(4)
    exact = med(batch, want, pairs)
    longer = replace(batch, ids=F.pad(batch.ids, (0, 3)), mask=F.pad(batch.mask, (0, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        result, padded = med(batch, want, pairs), med(longer, want, pairs)
    assert result.logits["lm"].dtype == torch.bfloat16 and result.logits["itc"].dtype == torch.float32
    for task, scores in result.logits.items():
        torch.testing.assert_close(scores.float(), exact.logits[task], atol=0.15, rtol=0.05)
        torch.testing.assert_close(scores, padded.logits[task][:, : scores.shape[1]], atol=0.05, rtol=0.02)
