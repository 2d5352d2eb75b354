"""Every published size builds, takes another's weights, and runs forward and backward, in all tasks."""

import pytest
import torch

from dlip.checkpoints.blip import Checkpoint
from dlip.checkpoints.tensors import weights
from dlip.data.batch import Batch
from dlip.models.config import PRESETS, paper_size
from dlip.models.features import ABILITIES, Want
from dlip.models.med import Med

LARGE = dict(image_width=1024, image_heads=16, image_layers=24)


@pytest.mark.parametrize(
    "size",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            if name in ("blip-base", "dlip-mid", "dlip-small", "photos-hybrid-teacher")
            else name
            for name in PRESETS
        ),
        pytest.param("large-384", marks=pytest.mark.slow),
    ],
)
def test_every_size_loads_and_trains(size):
    config = PRESETS[size] if size in PRESETS else paper_size("base", "base", **LARGE, image_size=384)
    source = Med(config)
    med = Checkpoint(weights(source), config, None).build("here")
    assert torch.equal(med.itm_head.weight, source.itm_head.weight)
    del source
    ids = torch.full((1, 4), 7)
    ids[:, 0], mask = config.cls_id, torch.ones(1, 4, dtype=torch.bool)
    images = torch.randint(256, (1, 3, config.image_size, config.image_size), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(1, dtype=torch.long), ids, mask, ids, mask, ids, mask)
    out = med.train()(batch, Want(frozenset(ABILITIES)))
    sum(out.logits[task].float().square().mean() for task in ABILITIES).backward()
    assert all(out.logits[task].isfinite().all() for task in ABILITIES)
    assert med.vision_model.embeddings.patch_embedding.weight.grad.isfinite().all()
