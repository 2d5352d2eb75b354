"""BLIP's published checkpoints as this project's models: Hugging Face's layout and the original `.pth` files.

Both name the text side alike (`text_encoder.`, `text_decoder.`); the image side is renamed from the original's, which
is timm's. A model's `abilities` leave out those that its checkpoint has no weights for. Nothing is ever unpickled.
Sources: github.com/salesforce/BLIP (models/*.py) and transformers' convert_blip_original_pytorch_to_hf.py.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlip.checkpoints.hub import from_hub
from dlip.checkpoints.tensors import fitting, load_weights, read_state, weights
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig
from dlip.models.fast.precision import lower, warn_if_emulated
from dlip.models.features import ABILITIES
from dlip.models.med import Med

HEAD, WORDS = "text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"
VOCABULARY = "google-bert/bert-base-uncased"
"""Whose words an original checkpoint reads; the files themselves hold none."""
PROMPT = "a picture of"
KINDS = {
    "pretrained": (frozenset({"itc", "itm", "lm"}), 30),
    "retrieval": (frozenset({"itc", "itm"}), 35),
    "caption": (frozenset({"lm"}), 40),
    "vqa": (frozenset({"vqa"}), 35),
}
"""Kind of checkpoint -> what it is able to, and the longest text that BLIP's own training gave it, in tokens."""


RANDOM = {
    Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
    Tensor.erfinv_, Tensor.clamp_,  # of `trunc_normal_`; older releases of torch import their compiler for them
}  # fmt: skip


class Blank(TorchFunctionMode):
    """Zeros where layers begin with random numbers: drawing a large model's takes longer than reading it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in RANDOM:
            return nn.init.zeros_(args[0] if args else kwargs["tensor"])
        return function(*args, **kwargs)


@dataclass
class Checkpoint:
    """A model as it was found: what it lacks is in `tensors` under no name."""

    tensors: dict[str, Tensor]
    """Under this project's names."""
    config: ModelConfig
    tokenizer: Tokenizer
    abilities: frozenset[str] = frozenset(ABILITIES)
    precision: str = "fp32"

    def build(self, source: str) -> Med:
        """The model in eval mode, zeros where no ability of it needs weights. Raises UserError where others lack."""
        with Blank(), torch.device("meta"):  # first without memory, which sizes not the weights' might not find
            self._whole(lower(Med(self.config), self.precision), source)
        with Blank():
            med = lower(Med(self.config).eval(), self.precision)
        warn_if_emulated(self.precision, f"the model that {source} was made from is faster here")
        med.abilities = self.abilities
        load_weights(med, self._whole(med, source))
        if wrong := [name for name, tensor in weights(med).items() if not tensor.isfinite().all()]:
            raise UserError(f"{source} holds values that are no numbers in {wrong[0]}; take another copy of it")
        return med

    def _whole(self, med: Med, source: str) -> dict[str, Tensor]:
        """The tensors with what may lack. Raises UserError where they are not those of the model."""
        spare = {name: torch.zeros_like(tensor) for name, tensor in weights(med).items() if not self.needs(name)}
        spare["temp"] = med.temp  # only the original files keep it; BLIP begins with the same
        return fitting(med, {**spare, **self.tensors}, source)

    def needs(self, name: str) -> bool:
        """Whether one of the abilities reads the weight of this name."""
        tasks = {"vision_proj": {"itc"}, "text_proj": {"itc"}, "itm_head": {"itm"}, "text_decoder": {"lm", "vqa"},
                 "question_bridge": {"vqa"}}.get(name.split(".")[0], self.abilities)  # fmt: skip
        if name.startswith("text_encoder.encoder.") and ".attention." in name:
            tasks = {"itc", "itm", "vqa"}
        return bool(self.abilities & tasks)

    def at(self, size: int) -> "Checkpoint":
        """The same for pictures of another size in px, positions interpolated as BLIP does."""
        config = replace(self.config, image_size=size)
        key = "vision_model.embeddings.position_embedding"
        tensors = {**self.tensors, key: on_grid(self.tensors[key].float(), config.grid**2 + 1)}
        return replace(self, tensors=tensors, config=config)


def kind_of(state: dict[str, Tensor], source: str) -> str:
    """Which of `KINDS` these weights are. Raises UserError where they are none."""
    encoder, decoder = (any(name.startswith(f"{part}.") for name in state) for part in ("text_encoder", "text_decoder"))
    matches = "itm_head.weight" in state and "vision_proj.weight" in state
    kinds = {(True, True, True): "pretrained", (True, False, True): "retrieval", (False, True, False): "caption",
             (True, True, False): "vqa"}  # fmt: skip
    if (encoder, decoder, matches) not in kinds:
        raise UserError(
            f"{source} is a BLIP of an unknown kind; take one for pre-training, retrieval, captioning or VQA"
        )
    return kinds[encoder, decoder, matches]


# --- Hugging Face's layout --------------------------------------------------------------------------------------------


def hugging_face(folder: Path) -> Checkpoint:
    """A folder that stock `transformers` wrote: config.json, weights, BERT's vocabulary, the picture's mean and std.

    Texts with pictures begin with [CLS] and captions without a prompt, as the stock classes have it.
    """
    from transformers import BlipConfig

    try:
        stock = BlipConfig.from_dict(read_json(folder / "config.json"))
        image, text = stock.vision_config, stock.text_config
        acts = {image.hidden_act, text.hidden_act}
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{folder / 'config.json'} is no BLIP's ({error}); copy it again") from None
    if acts != {"gelu"}:
        raise UserError(f"{folder} is a BLIP with the activations {', '.join(acts)}; only gelu is known here")
    state = read_state(folder)
    kind = kind_of(state, str(folder))
    tokenizer = Tokenizer.load(folder)
    if (len(tokenizer), tokenizer.dec_id) != (text.vocab_size, text.bos_token_id):
        raise UserError(
            f"{folder} is of a vocabulary of {text.vocab_size} with [DEC] at {text.bos_token_id}, the one there is of "
            f"{len(tokenizer)} with [DEC] at {tokenizer.dec_id}; copy the checkpoint's own there"
        )
    tensors = ours(state, kind)
    config = ModelConfig(
        image_size=image.image_size, patch_size=image.patch_size, image_width=image.hidden_size,
        image_heads=image.num_attention_heads, image_layers=image.num_hidden_layers, image_mlp=image.intermediate_size,
        text_width=text.hidden_size, text_heads=text.num_attention_heads, text_layers=text.num_hidden_layers,
        text_mlp=text.intermediate_size, embed_dim=stock.image_text_hidden_size, vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings, max_text=KINDS[kind][1], image_eps=image.layer_norm_eps,
        text_eps=text.layer_norm_eps, pad_id=text.pad_token_id, cls_id=tokenizer.cls_id, sep_id=text.sep_token_id,
        dec_id=text.bos_token_id, enc_id=tokenizer.cls_id, tie_decoder=kind != "vqa", tie_head=HEAD not in tensors,
        **normalisation(folder),
    )  # fmt: skip
    return Checkpoint(tensors, config, tokenizer, KINDS[kind][0])


def normalisation(folder: Path) -> dict[str, tuple[float, ...]]:
    """image_mean and image_std as the folder's processor has them, in either of its files; CLIP's where it has none."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            values = values.get("image_processor", values)
            return {key: tuple(values[key]) for key in ("image_mean", "image_std") if key in values}
    return {}


# --- the original files -----------------------------------------------------------------------------------------------

_TIMM = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"norm\.(weight|bias)", r"post_layernorm.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"encoder.layers.\1.mlp.\2.\3"),
)


def from_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ViT in timm's names under `vision_model.`; classifier and distillation token are left out.

    Raises UserError where it is a ViT of another kind, with weights that have no place here or without a class token's.
    """
    out = {}
    for name, tensor in tensors.items():
        found = [match.expand(new) for pattern, new in _TIMM if (match := re.fullmatch(pattern, name))]
        if found:
            out["vision_model." + found[0]] = tensor
        elif re.match(r"blocks\.|norm_pre|reg_token|patch_embed\.norm", name):
            raise UserError(
                f"this ViT has {name}, which a BLIP's image encoder has no place for; take a plain ViT or DeiT"
            )
    names = ("class_embedding", "position_embedding", "patch_embedding.weight")
    if missing := [name for name in names if f"vision_model.embeddings.{name}" not in out]:
        raise UserError(f"these weights have no {missing[0]}, as a ViT has; take a plain ViT or DeiT")
    places = out["vision_model.embeddings.position_embedding"].shape[1]
    if round((places - 1) ** 0.5) ** 2 != places - 1:
        raise UserError(f"{places} positions are not those of a class token and a square of patches; take another ViT")
    return out


def original(path: Path) -> Checkpoint:
    """An original `.pth`, its sizes read off its tensors; momentum copies and queues are left where they are.

    Texts with pictures begin with [ENC]; a captioning model says "a picture of" first. The vocabulary is the one beside
    the file or, where there is none, the hub's. Raises UserError where the file is no BLIP.
    """
    state = read_state(path)
    if "visual_encoder.patch_embed.proj.weight" not in state:
        raise UserError(f"{path} has no visual_encoder, so it is no BLIP; name one of BLIP's own .pth files")
    picture = {
        name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual_encoder.")
    }
    state = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder")}
    kind = kind_of(state, str(path))
    tensors = ours({**state, **from_timm(picture)}, kind)
    side = "text_decoder.bert" if kind == "caption" else "text_encoder"
    text_layers, image_layers = depth(state, f"{side}.encoder.layer."), depth(picture, "blocks.")
    fusion = [i for i in range(text_layers) if f"{side}.encoder.layer.{i}.crossattention.self.key.weight" in state]
    vocab, text = state[f"{side}.embeddings.word_embeddings.weight"].shape
    width, _, patch, _ = picture["patch_embed.proj.weight"].shape
    tokenizer = vocabulary(path)
    config = ModelConfig(
        image_size=round((picture["pos_embed"].shape[1] - 1) ** 0.5) * patch, patch_size=patch, image_width=width,
        image_heads=width // 64, image_layers=image_layers,
        image_mlp=len(picture["blocks.0.mlp.fc1.bias"]), text_width=text, text_heads=text // 64,
        text_layers=text_layers, fusion_layers=tuple(fusion),
        text_mlp=len(state[f"{side}.encoder.layer.0.intermediate.dense.bias"]),
        embed_dim=len(state["vision_proj.bias"]) if "vision_proj.bias" in state else 256, vocab_size=vocab,
        max_positions=len(state[f"{side}.embeddings.position_embeddings.weight"]), max_text=KINDS[kind][1],
        image_eps=1e-6, pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
        dec_id=tokenizer.dec_id, enc_id=tokenizer.enc_id,
        prompt_ids=tuple(tokenizer.encode([PROMPT])[0][0, 1:-1].tolist()) if kind == "caption" else (),
        tie_decoder=kind != "vqa", tie_head=HEAD not in tensors,
    )  # fmt: skip
    if vocab != len(tokenizer):
        raise UserError(f"{path} has {vocab} words, the vocabulary beside it {len(tokenizer)}; put its own there")
    if kind == "vqa" and width > text:
        tensors |= bridged(tensors, width, text)
    return Checkpoint(tensors, config, tokenizer, KINDS[kind][0])


def bridged(tensors: dict[str, Tensor], image: int, text: int) -> dict[str, Tensor]:
    """A large VQA's decoder reads questions in their own width; here they come in the picture's, zeros behind them."""
    reads = re.compile(r"text_decoder\..*crossattention\.self\.(key|value)\.weight")
    keys = filter(reads.fullmatch, tensors)
    wider = {name: F.pad(tensors[name], (0, image - text)) for name in keys}
    return wider | {"question_bridge.weight": torch.eye(image, text), "question_bridge.bias": torch.zeros(image)}


def vocabulary(path: Path) -> Tokenizer:
    """The vocabulary in the folder of an original checkpoint, or the hub's of the BERT that it began as."""
    if any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return Tokenizer.load(path.parent)
    try:
        return Tokenizer.load(from_hub(VOCABULARY, ("tokenizer.json", "vocab.txt")))
    except UserError:
        raise UserError(
            f"{path} holds no vocabulary and {VOCABULARY} cannot be had from the hub; put its vocab.txt beside the file"
        ) from None


# --- parts ------------------------------------------------------------------------------------------------------------


def ours(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The same weights under the names by which a `Med` stores each of them once; copies and buffers left out.

    Raises UserError where a pre-training model's decoder does not share its layers with the encoder.
    """
    keep = ("vision_model.", "text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.", "temp")
    out = {name: t for name, t in state.items() if name.startswith(keep) and not name.endswith("position_ids")}
    bias = out.pop("text_decoder.cls.predictions.decoder.bias", None)
    if bias is not None:
        out.setdefault("text_decoder.cls.predictions.bias", bias)
    if HEAD in out and torch.equal(out[HEAD], out[WORDS]):
        del out[HEAD]
    if kind == "vqa":
        return out
    for name in [name for name in out if name.startswith("text_decoder.bert.") and ".attention." not in name]:
        twin, tensor = name.replace("text_decoder.bert.", "text_encoder."), out.pop(name)
        if kind == "pretrained" and not torch.equal(tensor, out[twin]):
            raise UserError(f"{name} of this pre-training checkpoint is not {twin}, which BLIP ties; take another")
        out[twin] = tensor
    return out


def depth(names: Iterable[str], prefix: str) -> int:
    """How many layers lie under `prefix`. Raises ValueError where one is missing from 0 to the last."""
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{len(numbers)} layers of {prefix} up to number {max(numbers)}")
    return len(numbers)


def on_grid(value: Tensor, length: int) -> Tensor:
    """[CLS] and patch positions [1, 1+g*g, D] on another grid, bicubic as BLIP's own code interpolates them."""
    old, new = (round((n - 1) ** 0.5) for n in (value.shape[1], length))
    patches = value[:, 1:].transpose(1, 2).unflatten(-1, (old, old))
    patches = F.interpolate(patches, (new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    return value if old == new else torch.cat([value[:, :1], patches], 1)
