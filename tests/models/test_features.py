"""What `Want` requests, what `Trace` keeps, and which pairs ITM reads."""

import torch

from dlip.models.config import scenes_size
from dlip.models.features import Trace, Want, hard_negatives

CONFIG = scenes_size(32, 5, 4, fusion_layers=(1, 2))


def test_source_is_computed_if_an_ability_or_a_layer_needs_it():
    want = Want(frozenset({"itm"}), {("decoder", "self"): (-1,)})
    assert [want.includes(s) for s in ("image", "text", "fusion", "decoder")] == [False, False, True, True]
    assert Want(frozenset({"itc"})).includes("text") and Want(frozenset({"lm"})).includes("decoder")
    assert not any(Want(frozenset({"vqa"})).includes(s) for s in ("text", "fusion", "decoder"))


def test_union_of_wants():
    both = Want(frozenset({"itc"}), {("image", "states"): (-1,)}) | Want(
        frozenset({"lm"}), {("image", "states"): (0, -1), ("fusion", "cross"): (1,)}
    )
    assert both.abilities == {"itc", "lm"}
    assert both.layers == {("image", "states"): (-1, 0), ("fusion", "cross"): (1,)}


def test_layers_count_from_either_end():
    want = Want(layers={("image", "states"): (-1, 0), ("text", "states"): (-2,), ("fusion", "cross"): (-1, 1)})
    assert want.layers_of("image", CONFIG) == {"states": {-1: 4, 0: 0}}
    assert want.layers_of("text", CONFIG) == {"states": {-2: 2}}
    assert want.layers_of("fusion", CONFIG) == {"cross": {-1: 2, 1: 1}}  # of the layers with cross-attention
    assert want.layers_of("decoder", CONFIG) == {}


def test_trace_keeps_what_is_wanted():
    trace, values = Trace({"states": {-1: 3, 0: 0}}), torch.arange(4.0)
    for i, value in enumerate(values):
        trace.keep("states", i, value)
        trace.keep("self", i, value)
    assert trace.kept.keys() == {("states", 0), ("states", 3)}
    assert trace.get("states") == 3 and trace.get("states", 0) == 0
    assert not trace.wants("self", 0) and not Trace().wants("states", 0)


def test_negatives_are_never_of_the_same_image():
    ids = torch.tensor([7, 7, 7, 1, 2, 2, 3, 7])
    similarity = 50 * (ids[:, None] == ids[None]).float()  # the forbidden pairs are the most similar
    for seed in range(20):
        torch.manual_seed(seed)
        images, texts = hard_negatives(similarity, ids)
        assert len(images) == len(texts) == 24
        assert images[:8].tolist() == texts[:8].tolist() == list(range(8))
        assert images[8:16].tolist() == list(range(8)) and texts[16:].tolist() == list(range(8))
        assert (ids[images[8:]] != ids[texts[8:]]).all()


def test_negatives_follow_similarity():
    """In proportion to the softmax of rows (texts for an image) and of columns (images for a text)."""
    torch.manual_seed(0)
    similarity, n = torch.randn(5, 5) * 1.5, 4000
    draws = [hard_negatives(similarity, torch.arange(5)) for _ in range(n)]
    texts = torch.stack([t[5:10] for _, t in draws])  # [n, 5], for each image
    images = torch.stack([p[10:] for p, _ in draws])
    for drawn, table in ((texts, similarity), (images, similarity.T)):
        counts = torch.stack([(drawn == j).float().mean(0) for j in range(5)], 1)  # [5, 5]
        expected = table.softmax(1) * (1 - torch.eye(5))
        torch.testing.assert_close(counts, expected / expected.sum(1, keepdim=True), atol=0.03, rtol=0)
