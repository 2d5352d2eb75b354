"""Order of the training images: a function of the seed alone, for any worker and any first step."""

import pytest
import torch

from dlip.common.errors import UserError
from dlip.data.collate import Collate
from dlip.data.dataset import epoch_order
from dlip.data.loader import ResumableBatchSampler, raise_faults, train_loader
from dlip.data.scenes.dataset import Scenes
from tests.helpers import differences


def test_each_epoch_is_another_permutation():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    state = torch.get_rng_state()
    assert epoch_order(50, 0, 0) == orders[0] and torch.equal(torch.get_rng_state(), state)


def test_batch_never_spans_two_epochs():
    """Ten items in batches of four: two batches per epoch, two items dropped."""
    batches = list(ResumableBatchSampler(10, 4, steps=6, seed=3))
    assert [{epoch for epoch, _ in batch} for batch in batches] == [{0}, {0}, {1}, {1}, {2}, {2}]
    for epoch in range(3):
        items = [i for batch in batches[2 * epoch : 2 * epoch + 2] for _, i in batch]
        assert items == epoch_order(10, 3, epoch)[:8]


@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_resumed_sampler_continues_the_order(start):
    whole, late = ResumableBatchSampler(10, 4, 6, seed=3), ResumableBatchSampler(10, 4, 6, seed=3, start=start)
    assert list(late) == list(whole)[start:] and len(late) == 6 - start


@pytest.mark.parametrize("start", [0, 2])
def test_processes_and_micro_batches_split_each_batch(start):
    """Every row is read once; also where an epoch leaves over more than a micro-batch."""
    whole = list(ResumableBatchSampler(23, 6, 9, seed=3, start=start))
    shares = [ResumableBatchSampler(23, 6, 9, seed=3, start=start, rank=rank, world=2) for rank in (0, 1)]
    assert [one + two for one, two in zip(*shares, strict=True)] == whole
    micro = list(ResumableBatchSampler(23, 6, 9, seed=3, accumulate=3, start=start))
    assert [a + b + c for a, b, c in zip(*[iter(micro)] * 3, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_are_bit_exact_for_any_workers(workers, tiny):
    dataset = Scenes("train-small", size=9)
    collate = Collate(tiny.tokenizer, 48, max_text=40, seed=1, augment=True)
    plain = list(train_loader(dataset, ResumableBatchSampler(9, 3, 6, seed=1), collate))
    late = list(train_loader(dataset, ResumableBatchSampler(9, 3, 6, seed=1, start=2), collate, workers))
    assert len(plain) == 6 and all(differences(a, b) == [] for a, b in zip(late, plain[2:], strict=True))
    order = epoch_order(9, 1, 0) + epoch_order(9, 1, 1)
    assert torch.cat([batch.image_id for batch in plain]).tolist() == [dataset[i].image_id for i in order]


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_items_are_raised_unchanged(workers, tiny):
    class Broken(Scenes):
        def __getitem__(self, i):
            if i == 3:
                raise UserError("a.png is not an image; copy it again")
            return super().__getitem__(i)

    sampler, collate = ResumableBatchSampler(8, 4, 2, seed=0), Collate(tiny.tokenizer, 48, max_text=40)
    with pytest.raises(UserError, match="^a.png is not an image; copy it again$"):
        list(raise_faults(iter(train_loader(Broken("val", size=8), sampler, collate, workers))))
