"""Model configurations: defaults, named sizes, refused values, and the round trip through JSON."""

import json
from dataclasses import replace

import pytest

from dlip.common.errors import UserError
from dlip.models.config import PRESETS, ModelConfig, preset, scenes_size


def test_defaults_are_blip_base():
    c = ModelConfig()
    assert (c.image_mlp, c.text_mlp) == (3072, 3072) and c.fusion_layers == tuple(range(12)) and c.grid == 14
    assert (c.image_size, c.vocab_size, c.enc_id, c.dec_id, c.max_text) == (224, 30524, 30523, 30522, 30)
    assert PRESETS["blip-base"] == c


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name):
    c = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


def test_preset_with_changes():
    c = preset("scenes-student:image_width=64,text_layers=4")
    assert c == scenes_size(80, 4, 4, image_width=64)
    assert (c.image_mlp, c.text_mlp, c.fusion_layers) == (256, 320, (0, 1, 2, 3))
    assert preset("scenes-student:text_layers=4,fusion_layers=3+1").fusion_layers == (1, 3)
    assert preset("scenes-student:image_mlp=100").image_mlp == 100
    for name in PRESETS:
        assert preset(name) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scenes-student:text_layers", "give whole numbers"),
        ("scenes-student:text_layers=many", "give whole numbers"),
        ("scenes-student:text_layers=1+2", "give whole numbers"),
        ("scenes-student:depth=3", "changes 'depth'"),
        ("scenes-student:image_eps=3", "changes 'image_eps'"),
        ("scenes-student:image_heads=3", "is not divisible by 3 heads"),
        ("huge:text_layers=3", "no model size 'huge'"),
    ],
)
def test_wrong_preset_changes_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        preset(name)


def test_fusion_layers_are_sorted_and_unique():
    assert replace(ModelConfig(), fusion_layers=(5, 1, 5)).fusion_layers == (1, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_width=100, image_heads=3), "image_width 100 is not divisible by 3 heads"),
        (dict(text_width=100, text_heads=3), "text_width 100 is not divisible by 3 heads"),
        (dict(image_size=50), "image_size 50 is not a multiple of patch_size 8"),
        (dict(fusion_layers=(0, 2)), "fusion_layers"),
        (dict(fusion_layers=(-1,)), "fusion_layers"),
        (dict(max_text=49), r"max_text is 49; give 3 to max_positions \(48\)"),
        (dict(image_std=(0.5,)), "image_std is .* 3 color channels"),
        (dict(dropout=1.5), "dropout is 1.5"),
        (dict(text_heads=0), "text_heads is 0"),
        (dict(image_mlp=-4), "image_mlp is -4"),
        (dict(pad_id=-1), "pad_id is -1"),
        (dict(image_std=(0.5, 0.0, 0.5)), "must be greater than 0"),
        (dict(text_eps=-1e-5), "must be greater than 0"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        scenes_size(32, 1, 2, **changes)
