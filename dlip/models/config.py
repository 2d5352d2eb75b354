"""Sizes of a model: a validated dataclass, and the sizes that have names."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import ClassVar

from dlip.common.errors import UserError
from dlip.common.fields import Config
from dlip.models.backbone import BackboneSize, backbone_size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LAYERS, MAX_SIZE = 1_000, 10_000_000
"""Above these a configuration is damaged; a model of that size would fill any machine."""


@dataclass(frozen=True)
class ModelConfig(Config):
    """Sizes and vocabulary of a BLIP (its MED: multimodal mixture of encoder-decoder). The defaults are BLIP-Base's."""

    class_token: ClassVar[bool] = True
    """A class token is read with the patches."""
    image_size: int = 224
    """Side of the square image, in px."""
    patch_size: int = 16
    """Side of a patch, in px; divides image_size."""
    image_backbone: str = ""
    """Feature extractor of timm whose last grid becomes the patches, as `tf_efficientnet_lite2`; "" for a plain ViT.
    patch_size is then its stride, and a last row of patches may reach over the image."""
    image_width: int = 768
    image_heads: int = 12
    image_layers: int = 12
    image_mlp: int = 0
    """Width of the image encoder's feed-forward; 0 means 4 x image_width."""
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    text_mlp: int = 0
    """Width of the text layers' feed-forward; 0 means 4 x text_width (unpublished for Middle and Tiny)."""
    fusion_layers: tuple[int, ...] | None = None
    """Text layers with cross-attention, counted from 0; None means all. Without any the model is a language model."""
    embed_dim: int = 256
    """Width of the vectors that ITC compares."""
    tie_decoder: bool = True
    """The decoder shares all but self-attention with the text encoder, as in BLIP's pre-training."""
    tie_head: bool = True
    """Logits use the word embeddings; BLIP's published pre-training checkpoints have a matrix of their own."""
    vocab_size: int = 30524
    max_positions: int = 512
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    dec_id: int = 30522
    """[DEC], the first token of a decoded text."""
    enc_id: int = 30523
    """First token of a text that is read together with an image. BLIP's original code uses [ENC] (30523); stock
    `transformers` keeps [CLS], so that `enc_id = cls_id` gives its exact scores."""
    prompt_ids: tuple[int, ...] = ()
    """Tokens that each decoded caption starts with and that have no loss (BLIP's captioning: "a picture of")."""
    no_repeat_ngram_size: int = 0
    """A caption has no n-gram of so many tokens twice, as in `generate` of `transformers`; 0 allows repetition."""
    dropout: float = 0.0
    """Probability of dropout after each sub-layer."""
    max_text: int = 30
    """Longest text, in tokens; longer ones are truncated."""
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    image_eps: float = 1e-5
    text_eps: float = 1e-12
    """Epsilons of the layer norms."""

    def __post_init__(self):
        set_field = partial(object.__setattr__, self)  # the class is frozen
        set_field("image_mlp", self.image_mlp or 4 * self.image_width)
        set_field("text_mlp", self.text_mlp or 4 * self.text_width)
        for f in fields(self):
            least = 0 if f.name.endswith(("_id", "ngram_size")) else 1
            most = MAX_LAYERS if f.name.endswith("_layers") else MAX_SIZE
            if f.type is int and not least <= getattr(self, f.name) <= most:
                raise UserError(
                    f"model.{f.name} is {getattr(self, f.name)}; give a whole number from {least} to {most:,}"
                )
        fusion = range(self.text_layers) if self.fusion_layers is None else sorted(set(self.fusion_layers))
        set_field("fusion_layers", tuple(fusion))
        self._validate()

    def _validate(self) -> None:
        for side in ("image", "text"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            if width % heads:
                raise UserError(
                    f"model.{side}_width {width} is not divisible by {heads} heads; choose {side}_heads that divide it"
                )
        if self.image_size % self.patch_size and not self.image_backbone:
            raise UserError(f"model.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if wrong := [i for i in self.fusion_layers if not 0 <= i < self.text_layers]:
            raise UserError(f"model.fusion_layers has {wrong[0]}; the {self.text_layers} text layers count from 0")
        if not 3 <= self.max_text <= self.max_positions:
            raise UserError(f"model.max_text is {self.max_text}; give 3 to max_positions ({self.max_positions})")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; give at least 0 and less than 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise UserError(f"model.{name} is {getattr(self, name)}; give a number for each of 3 color channels")
        if not min(*self.image_std, self.image_eps, self.text_eps) > 0:
            raise UserError("model.image_std, image_eps and text_eps must be greater than 0")

    @property
    def grid(self) -> int:
        """Patches per side."""
        return -(-self.image_size // self.patch_size)


# The paper's encoder sizes (Table 1): width, heads, layers.
IMAGE_SIZES = {"base": (768, 12, 12), "middle": (576, 9, 12), "small": (384, 6, 12), "tiny": (192, 3, 12)}
TEXT_SIZES = {"base": (768, 12, 12), "middle": (576, 12, 8), "small": (384, 12, 6), "tiny": (192, 12, 4)}


def encoder_sizes(image: tuple[int, int, int], text: tuple[int, int, int]) -> dict[str, int]:
    """Fields of a ModelConfig for encoders of (width, heads, layers) each."""
    (iw, ih, il), (tw, th, tl) = image, text
    return dict(image_width=iw, image_heads=ih, image_layers=il, text_width=tw, text_heads=th, text_layers=tl)


def paper_size(image: str, text: str, **changes) -> ModelConfig:
    """One of the paper's image encoders with one of its text encoders: `paper_size("base", "small")`."""
    return ModelConfig(**{**encoder_sizes(IMAGE_SIZES[image], TEXT_SIZES[text]), **changes})


def scenes_size(width: int, image_layers: int, text_layers: int, **changes) -> ModelConfig:
    """A model for the built-in scenes: images of 64 px in 64 patches, four heads, one width for image and text.

    The vocabulary's size and ids are those of the tokenizer trained on the scenes; `enc_id = cls_id`, so that stock
    `transformers` gives an exported model's exact scores.
    """
    sizes = encoder_sizes((width, 4, image_layers), (width, 4, text_layers)) | dict(
        image_size=64, patch_size=8, embed_dim=64, vocab_size=128, max_positions=48, max_text=40, cls_id=2, sep_id=3,
        dec_id=5, enc_id=2, image_mean=(0.5,) * 3, image_std=(0.25,) * 3,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


def hybrid_size(number: int, image_size: int, image: tuple[int, int, int], text: tuple[int, int, int], **changes):
    """A model for some thousand photographs on a CPU, with an EfficientNet-Lite of that number in its image encoder.

    image_size: in px. image, text: (width, heads, layers). The vocabulary's size and ids are those of a tokenizer
    trained on the captions.
    """
    sizes = encoder_sizes(image, text) | dict(
        image_backbone=f"tf_efficientnet_lite{number}", image_size=image_size, patch_size=32, image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3, embed_dim=128, vocab_size=4096, max_positions=64, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
        dropout=0.1, no_repeat_ngram_size=2,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


PRESETS = {
    "blip-base": paper_size("base", "base"),
    "dlip-mid": paper_size("middle", "middle"),
    "dlip-small": paper_size("small", "small"),
    "dlip-tiny": paper_size("tiny", "tiny"),
    "scenes-teacher": scenes_size(128, 5, 6),
    "scenes-student-mid": scenes_size(112, 4, 3),
    "scenes-student": scenes_size(80, 4, 2),
    "photos-hybrid-teacher": hybrid_size(2, 260, (384, 6, 1), (384, 12, 6), fusion_layers=(3, 4, 5)),
    "photos-hybrid-student": hybrid_size(0, 160, (128, 4, 1), (128, 4, 3)),
}


def preset(name: str) -> ModelConfig:
    """A named size, or one with changes: `scenes-student:image_width=64,text_layers=6,fusion_layers=4+5`.

    Feed-forwards stay 4 times as wide. If text_layers changes, all of them get cross-attention unless fusion_layers is
    given. With image_backbone, images are normalized and cut as the backbone does it. Raises UserError for an unknown
    size or change.
    """
    base, _, changes = name.partition(":")
    if base not in PRESETS:
        raise UserError(f"there is no model size {base!r}; choose one of {', '.join(PRESETS)}")
    numbers = {f.name for f in fields(ModelConfig) if f.type is int and not f.name.endswith("_id")} - {"vocab_size"}
    changeable = numbers | {"fusion_layers", "image_backbone"}
    values: dict = {"image_mlp": 0, "text_mlp": 0}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        if key not in changeable:
            raise UserError(f"model size {name!r} changes {key!r}; choose one of {', '.join(sorted(changeable))}")
        if key == "image_backbone":
            values[key] = value
            continue
        try:
            values[key] = tuple(map(int, filter(None, value.split("+")))) if key == "fusion_layers" else int(value)
        except ValueError:
            raise UserError(f"model size {name!r} has {change!r}; give whole numbers, as in text_layers=6") from None
    if "text_layers" in values:
        values.setdefault("fusion_layers", None)
    name, image_size = (values.get(key, getattr(PRESETS[base], key)) for key in ("image_backbone", "image_size"))
    if changes and name:
        size = whole_backbone_size(name, image_size)
        values |= {"patch_size": size.stride, "image_mean": size.mean, "image_std": size.std}
    return replace(PRESETS[base], **values)


def whole_backbone_size(name: str, image_size: int) -> BackboneSize:
    """`backbone_size`. Raises UserError as it does, and where the backbone leaves out the edge of images."""
    size = backbone_size(name, image_size)
    if size.patches != (-(-image_size // size.stride)) ** 2:
        raise UserError(f"{name} leaves out the edge of images of {image_size} px; choose a multiple of {size.stride}")
    return size
