"""What a model and a run are: validated dataclasses, and the sizes that have names."""

from dataclasses import asdict, dataclass, fields, replace

from dlip.common.errors import UserError
from dlip.common.fields import check_kinds
from dlip.common.text import plural

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


MOST, MOST_LAYERS, MOST_GRID = 10_000_000, 1_000, 256
"""Of anything that a model counts, of its layers and of patches a side: more is a mistake, and would not fit any
machine."""


@dataclass(frozen=True)
class ModelConfig:
    """Size and vocabulary of a MED. The defaults are BLIP-Base's."""

    image_size: int = 224
    """Side of the square picture, in px."""
    patch_size: int = 16
    """Side of a patch, in px; divides image_size."""
    image_width: int = 768
    image_heads: int = 12
    image_layers: int = 12
    image_mlp: int = 0
    """Width of the image encoder's feed-forward; 0 stands for 4 x image_width."""
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    text_mlp: int = 0
    """Width of the text layers' feed-forward; 0 stands for 4 x text_width (unpublished for Middle and Tiny)."""
    fusion_layers: tuple[int, ...] | None = None
    """Text layers that hold cross-attention, counted from 0; None stands for all."""
    embed_dim: int = 256
    """Width of the space in which ITC compares pictures and texts."""
    tie_decoder: bool = True
    """Decoder shares everything but self-attention with the text encoder (BLIP's pre-training); else it has its own."""
    tie_head: bool = True
    """The decoder's scores are products with the word embeddings; BLIP's published pre-training has a matrix apart."""
    vocab_size: int = 30524
    max_positions: int = 512
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    dec_id: int = 30522
    """[DEC], the first token of a text that is decoded."""
    enc_id: int = 30523
    """First token of a text read together with its picture. BLIP's original code puts [ENC] (30523) there; stock
    `transformers` leaves [CLS], so `enc_id = cls_id` gives its exact scores."""
    prompt_ids: tuple[int, ...] = ()
    """Tokens that every decoded caption starts from and that are not learnt (BLIP's captioning: "a picture of")."""
    dropout: float = 0.0
    """Share of values dropped after every sub-layer in training."""
    max_text: int = 30
    """Longest text, in tokens; longer ones are cut."""
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    image_eps: float = 1e-5
    text_eps: float = 1e-12
    """Epsilons of the layer norms."""

    def __post_init__(self):
        for name, multiple in (("image_mlp", self.image_width), ("text_mlp", self.text_width)):
            if not getattr(self, name):
                object.__setattr__(self, name, 4 * multiple)
        fusion = range(self.text_layers) if self.fusion_layers is None else sorted(set(self.fusion_layers))
        object.__setattr__(self, "fusion_layers", tuple(fusion))
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for f in fields(self):
            least, most = 0 if f.name.endswith("_id") else 1, MOST_LAYERS if f.name.endswith("_layers") else MOST
            if f.type is int and not least <= getattr(self, f.name) <= most:
                value = getattr(self, f.name)
                raise UserError(f"model.{f.name} is {value}; give a positive whole number of at most {most:,}")
        for width, heads in (("image_width", "image_heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"model.{width} {getattr(self, width)} does not divide into {getattr(self, heads)} heads; "
                    f"choose {heads} so that it does"
                )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; give a number from 0 to below 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise UserError(
                    f"model.{name} has {plural(len(getattr(self, name)), 'number')}; give one for each of 3 colours"
                )
        for name in ("image_std", "image_eps", "text_eps"):
            value = getattr(self, name)
            if not min(value if isinstance(value, tuple) else (value,)) > 0:
                raise UserError(f"model.{name} is {value}; give numbers above 0")
        if self.image_size % self.patch_size:
            raise UserError(f"model.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.grid > MOST_GRID:
            raise UserError(f"model.image_size {self.image_size} has {self.grid:,} patches a side; at most {MOST_GRID}")
        for name in ("prompt_ids", "fusion_layers"):
            if any(type(number) is not int for number in getattr(self, name)):
                raise UserError(f"model.{name} is {getattr(self, name)}; give whole numbers")
        if not self.fusion_layers or self.fusion_layers[0] < 0 or self.fusion_layers[-1] >= self.text_layers:
            raise UserError(
                f"model.fusion_layers {self.fusion_layers} must name at least one of the {self.text_layers} text "
                f"layers, counted from 0"
            )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Raises UserError where a name is not one of the fields, or a value none of its kind."""
        check_kinds(cls, values, "model")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# The paper's encoder sizes (Table 1): width, heads, layers.
IMAGE_SIZES = {"base": (768, 12, 12), "middle": (576, 9, 12), "small": (384, 6, 12), "tiny": (192, 3, 12)}
TEXT_SIZES = {"base": (768, 12, 12), "middle": (576, 12, 8), "small": (384, 12, 6), "tiny": (192, 12, 4)}


def paper_size(image: str, text: str, **changes) -> ModelConfig:
    """The model of one of the paper's image encoders and one of its text encoders: `paper_size("base", "small")`."""
    (iw, ih, il), (tw, th, tl) = IMAGE_SIZES[image], TEXT_SIZES[text]
    sizes = dict(image_width=iw, image_heads=ih, image_layers=il, text_width=tw, text_heads=th, text_layers=tl)
    return ModelConfig(**{**sizes, **changes})


def scenes_size(width: int, image_layers: int, text_layers: int, **changes) -> ModelConfig:
    """A model for the built-in scenes: 48 px pictures in 36 patches, four heads, one width for picture and text.

    The vocabulary's size and ids are those of the tokenizer trained on the scenes; `enc_id = cls_id`, so that stock
    `transformers` gives an exported model's exact scores.
    """
    sizes = dict(
        image_size=48, patch_size=8, image_width=width, image_heads=4, image_layers=image_layers,
        text_width=width, text_heads=4, text_layers=text_layers, embed_dim=64, vocab_size=128, max_positions=48,
        max_text=40, cls_id=2, sep_id=3, dec_id=5, enc_id=2, image_mean=(0.5,) * 3, image_std=(0.25,) * 3,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


def photos_size(image: tuple[int, int, int], text: tuple[int, int, int], **changes) -> ModelConfig:
    """A model for a few thousand photographs on a CPU: 112 px in 49 patches; (width, heads, layers) of either side.

    The vocabulary's size and ids are those of a tokenizer trained on the captions.
    """
    (iw, ih, il), (tw, th, tl) = image, text
    sizes = dict(
        image_size=112, image_width=iw, image_heads=ih, image_layers=il, text_width=tw, text_heads=th, text_layers=tl,
        embed_dim=128, vocab_size=8192, max_positions=64, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
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
    "photos-teacher": photos_size((256, 8, 6), (384, 12, 6), fusion_layers=(1, 3, 5)),
    "photos-student": photos_size((192, 6, 4), (192, 6, 3)),
}


def preset(name: str) -> ModelConfig:
    """A named size, or one with changes: `scenes-student:image_width=64,text_layers=6,fusion_layers=4+5`.

    Feed-forwards stay 4 x as wide; where the text layers change, all of them hold cross-attention if nothing else is
    said. Raises UserError where there is no such size or change.
    """
    base, _, changes = name.partition(":")
    if base not in PRESETS:
        raise UserError(f"there is no model size {base!r}; choose one of {', '.join(PRESETS)}")
    values: dict = {"image_mlp": 0, "text_mlp": 0}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        try:
            numbers = tuple(map(int, value.split("+")))
        except ValueError:
            raise UserError(f"the size {name!r} has {change!r}; give whole numbers, as in text_layers=6") from None
        sizes = {f.name for f in fields(ModelConfig) if f.type is int and not f.name.endswith("_id")} - {"vocab_size"}
        if len(numbers) > 1 and key != "fusion_layers":
            raise UserError(f"the size {name!r} has {change!r}; give one number, only fusion_layers has several")
        if key not in sizes | {"fusion_layers"}:
            raise UserError(
                f"the size {name!r} changes {key!r}, which is no number of ModelConfig in dlip/models/config.py"
            )
        values[key] = numbers if key == "fusion_layers" else numbers[0]
    if "text_layers" in values:
        values.setdefault("fusion_layers", None)
    config = replace(PRESETS[base], **values)
    if not 3 <= config.max_text <= config.max_positions:
        raise UserError(
            f"the size {name!r} reads {config.max_text} tokens at {config.max_positions} positions; mend one"
        )
    return config
