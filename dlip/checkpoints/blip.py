"""Published BLIP checkpoints: Hugging Face's layout and the original `.pth` files.

Both name the text side alike (`text_encoder.`, `text_decoder.`); the original's image side has timm's names and is
renamed. `abilities` lacks those that a checkpoint has no weights for. Nothing is ever unpickled.
Sources: github.com/salesforce/BLIP (models/*.py) and transformers' convert_blip_original_pytorch_to_hf.py.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlip.checkpoints.hub import from_hub
from dlip.checkpoints.tensors import check_weights, load_weights, read_state, weights
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig, whole_backbone_size
from dlip.models.fast.precision import convert_precision, warn_if_emulated
from dlip.models.features import ABILITIES
from dlip.models.med import Med

LM_WEIGHT = "text_decoder.cls.predictions.decoder.weight"
DECODER_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
POSITIONS = "vision_model.embeddings.position_embedding"
BERT = "google-bert/bert-base-uncased"
"""Its vocabulary is that of the original checkpoints, which hold none."""
PROMPT = "a picture of"
PUBLISHED_HEADS = {
    "image": {(192, 12, 768): 3, (384, 12, 1536): 6, (768, 12, 3072): 12, (1024, 24, 4096): 16, (1280, 32, 5120): 16},
    "text": {(768, 12, 3072): 12},
}
"""Width, layers and feed-forward width of the published ViTs (tiny to huge) and of BERT-base -> heads, which no weight
shows."""
KINDS = {
    "pretrained": (frozenset({"itc", "itm", "lm"}), 30),
    "retrieval": (frozenset({"itc", "itm"}), 35),
    "captioning": (frozenset({"lm"}), 40),
    "vqa": (frozenset({"vqa"}), 35),
}
"""Kind of checkpoint -> its abilities, and the longest text of BLIP's own training in tokens."""
USERS = {
    "vision_proj": {"itc"},
    "text_proj": {"itc"},
    "itm_head": {"itm"},
    "text_decoder": {"lm", "vqa"},
    "question_bridge": {"vqa"},
}
"""Part of a model -> the abilities that read it; others are read by all."""
RANDOM_INITIALIZERS = {
    Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
    Tensor.erfinv_, Tensor.clamp_,  # of `trunc_normal_`; older releases of torch import their compiler for them
}  # fmt: skip


class ZeroInit(TorchFunctionMode):
    """Build layers with zeros instead of random weights, which take longer to draw than a checkpoint to read."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in RANDOM_INITIALIZERS:
            return nn.init.zeros_(args[0] if args else kwargs["tensor"])
        return function(*args, **kwargs)


@dataclass
class Checkpoint:
    """The files of a model: weights under this project's names, sizes, and tokenizer (None for an image encoder)."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    tokenizer: Tokenizer | None
    abilities: frozenset[str] = frozenset(ABILITIES)
    precision: str = "fp32"

    def build(self, source: str) -> Med:
        """The model in eval mode; weights that no ability needs are zero. Raises UserError if others are missing."""
        with ZeroInit():
            med = convert_precision(Med(self.config).eval(), self.precision)
        warn_if_emulated(self.precision, f"the fp32 original of {source} is faster here")
        med.abilities = self.abilities
        unused = {name: torch.zeros_like(tensor) for name, tensor in weights(med).items() if not self.needs(name)}
        unused["temp"] = med.temp  # only the original files have it; BLIP's training starts from the same value
        tensors = {**unused, **self.tensors}
        check_weights(med, tensors, source)
        load_weights(med, tensors)
        if wrong := [name for name, tensor in weights(med).items() if not tensor.isfinite().all()]:
            raise UserError(f"{source} has non-finite values in {wrong[0]}; use another copy of it")
        return med

    def needs(self, name: str) -> bool:
        """Whether an ability reads the weight of this name."""
        users = USERS.get(name.split(".")[0], self.abilities)
        if name.startswith("text_encoder.encoder.") and ".attention." in name:
            users = {"itc", "itm", "vqa"}
        return bool(self.abilities & users)

    def with_image_size(self, size: int) -> "Checkpoint":
        """The same for images of another size in px, positions interpolated as BLIP does.

        Raises UserError for a size that its backbone does not support.
        """
        config = replace(self.config, image_size=size)
        if config.image_backbone:
            whole_backbone_size(config.image_backbone, size)
        tensors = {**self.tensors, POSITIONS: resize_positions(self.tensors[POSITIONS].float(), config.grid**2 + 1)}
        return replace(self, tensors=tensors, config=config)


def kind_of(state: dict[str, Tensor], source: str) -> str:
    """The kind of checkpoint, of `KINDS`. Raises UserError if it is none."""
    encoder, decoder = (any(name.startswith(f"{part}.") for name in state) for part in ("text_encoder", "text_decoder"))
    matches = "itm_head.weight" in state and "vision_proj.weight" in state
    kinds = {
        (True, True, True): "pretrained",
        (True, False, True): "retrieval",
        (False, True, False): "captioning",
        (True, True, False): "vqa",
    }
    if (encoder, decoder, matches) not in kinds:
        raise UserError(
            f"{source} is a BLIP of an unknown kind; use one for pre-training, retrieval, captioning or VQA"
        )
    return kinds[encoder, decoder, matches]


# --- Hugging Face's layout --------------------------------------------------------------------------------------------


def read_hugging_face(folder: Path) -> Checkpoint:
    """Read a folder of stock `transformers`: config.json, weights, BERT's vocabulary, the processor's mean and std.

    As in the stock classes, captions have no prompt, and texts read with images start with [CLS]; with [ENC] where the
    folder's tokenizer says so, as in exports of models that were trained with it.
    """
    from transformers import BlipConfig

    try:
        stock = BlipConfig.from_dict(read_json(folder / "config.json"))
        image, text = stock.vision_config, stock.text_config
    except Exception as error:  # the library raises many types
        raise UserError(f"{folder / 'config.json'} is not a BLIP configuration ({error}); copy it again") from None
    state = read_state(folder)
    kind = kind_of(state, str(folder))
    tokenizer = Tokenizer.load(folder)
    if (len(tokenizer), tokenizer.dec_id) != (text.vocab_size, text.bos_token_id):
        raise UserError(
            f"{folder} needs a vocabulary of {text.vocab_size} tokens with [DEC] at {text.bos_token_id}, but the one "
            f"there has {len(tokenizer)} with [DEC] at {tokenizer.dec_id}; copy the checkpoint's own there"
        )
    tensors = store_once(state, kind)
    config = ModelConfig(
        image_size=image.image_size, patch_size=image.patch_size, image_width=image.hidden_size,
        image_heads=image.num_attention_heads, image_layers=image.num_hidden_layers, image_mlp=image.intermediate_size,
        text_width=text.hidden_size, text_heads=text.num_attention_heads, text_layers=text.num_hidden_layers,
        text_mlp=text.intermediate_size, embed_dim=stock.image_text_hidden_size, vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        max_text=read_max_text(folder, KINDS[kind][1], text.max_position_embeddings), image_eps=image.layer_norm_eps,
        text_eps=text.layer_norm_eps, pad_id=text.pad_token_id, cls_id=tokenizer.cls_id, sep_id=text.sep_token_id,
        dec_id=text.bos_token_id, enc_id=tokenizer.first_id, tie_decoder=kind != "vqa",
        tie_head=LM_WEIGHT not in tensors, no_repeat_ngram_size=read_no_repeat_ngram_size(folder),
        **read_normalization(folder),
    )  # fmt: skip
    return Checkpoint(tensors, config, tokenizer, KINDS[kind][0])


def read_max_text(folder: Path, usual: int, positions: int) -> int:
    """Tokens of a text: the tokenizer's `model_max_length` where it is below the number of positions, else the usual.

    BLIP's own checkpoints have as many as there are positions.
    """
    path = folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length") if path.is_file() else None
    return length if isinstance(length, int) and 0 < length < positions else min(usual, positions)


def read_no_repeat_ngram_size(folder: Path) -> int:
    """How many tokens in a row captions must not repeat; 0 where the folder does not say."""
    path = folder / "generation_config.json"
    return read_json(path).get("no_repeat_ngram_size") or 0 if path.is_file() else 0


def read_normalization(folder: Path) -> dict[str, tuple[float, ...]]:
    """image_mean and image_std of the folder's processor, in either of its files; empty if it has none."""
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


def rename_timm(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Rename a ViT's weights from timm's names to `vision_model.`; classifier and distillation token are dropped.

    Raises UserError for another kind of ViT, with weights that the image encoder lacks or without a class token.
    """
    out = {}
    for name, tensor in tensors.items():
        renamed = [match.expand(new) for pattern, new in _TIMM if (match := re.fullmatch(pattern, name))]
        if renamed:
            out["vision_model." + renamed[0]] = tensor
        elif re.match(r"blocks\.|norm_pre|reg_token|patch_embed\.norm", name):
            raise UserError(f"{source} has {name}, which BLIP's image encoder does not have; use a plain ViT or DeiT")
    names = ("class_embedding", "position_embedding", "patch_embedding.weight")
    if missing := [name for name in names if f"vision_model.embeddings.{name}" not in out]:
        raise UserError(f"{source} has no {missing[0]}, as a ViT has; use a plain ViT or DeiT")
    positions = out[POSITIONS].shape[1]
    if round((positions - 1) ** 0.5) ** 2 != positions - 1:
        raise UserError(
            f"the {positions} positions of {source} are not a class token and a square of patches; use another ViT"
        )
    return out


def read_original(path: Path, heads: Mapping[str, int]) -> Checkpoint:
    """Read an original `.pth`, its sizes from the shapes of its tensors; momentum copies and queues are skipped.

    Texts read with images start with [ENC], captions with the prompt "a picture of". The vocabulary is the one beside
    the file, else BERT's from the hub. heads: image_heads and text_heads, where the user states them; else see
    `head_counts`. Raises UserError if the file is not a BLIP, or if its heads are not known.
    """
    state = read_state(path)
    if "visual_encoder.patch_embed.proj.weight" not in state:
        raise UserError(f"{path} has no visual_encoder, so it is not a BLIP; name one of BLIP's own .pth files")
    prefix = "visual_encoder."
    image = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder")}
    kind = kind_of(state, str(path))
    tensors = store_once({**state, **rename_timm(image, path)}, kind)
    side = "text_decoder.bert" if kind == "captioning" else "text_encoder"
    text_layers = count_layers(state, f"{side}.encoder.layer.")
    fusion = [i for i in range(text_layers) if f"{side}.encoder.layer.{i}.crossattention.self.key.weight" in state]
    vocab, text = state[f"{side}.embeddings.word_embeddings.weight"].shape
    width, _, patch, _ = image["patch_embed.proj.weight"].shape
    tokenizer = load_tokenizer(path)
    sizes = {
        "image": (width, count_layers(image, "blocks."), len(image["blocks.0.mlp.fc1.bias"])),
        "text": (text, text_layers, len(state[f"{side}.encoder.layer.0.intermediate.dense.bias"])),
    }
    heads = head_counts(sizes, read_med_config(path, sizes["text"]) | heads, path)
    config = ModelConfig(
        image_size=round((image["pos_embed"].shape[1] - 1) ** 0.5) * patch, patch_size=patch, image_width=width,
        image_layers=sizes["image"][1], image_mlp=sizes["image"][2], text_width=text, text_layers=text_layers,
        text_mlp=sizes["text"][2], fusion_layers=tuple(fusion), **heads,
        embed_dim=len(state["vision_proj.bias"]) if "vision_proj.bias" in state else 256, vocab_size=vocab,
        max_positions=len(state[f"{side}.embeddings.position_embeddings.weight"]),
        max_text=min(KINDS[kind][1], len(state[f"{side}.embeddings.position_embeddings.weight"])),
        image_eps=1e-6, pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
        dec_id=tokenizer.dec_id, enc_id=tokenizer.enc_id,
        prompt_ids=tuple(tokenizer.encode([PROMPT])[0][0, 1:-1].tolist()) if kind == "captioning" else (),
        tie_decoder=kind != "vqa", tie_head=LM_WEIGHT not in tensors,
    )  # fmt: skip
    if vocab != len(tokenizer):
        raise UserError(f"{path} has {vocab} tokens, the vocabulary beside it {len(tokenizer)}; put its own there")
    if kind == "vqa" and width > text:
        tensors |= question_bridge(tensors, width, text)
    return Checkpoint(tensors, config, tokenizer, KINDS[kind][0])


def read_med_config(path: Path, size: tuple[int, int, int]) -> dict[str, int]:
    """text_heads from BLIP's `med_config.json` beside a `.pth`, empty without that file.

    size: width, layers and feed-forward width of the text side. Raises UserError if the file is of another model.
    """
    file = path.parent / "med_config.json"
    if not file.is_file():
        return {}
    values = read_json(file)
    for name, value in zip(("hidden_size", "num_hidden_layers", "intermediate_size"), size, strict=True):
        if values.get(name) != value:
            raise UserError(f"the {name} of {file} is {values.get(name)}, not {value}; put the checkpoint's own there")
    return {"text_heads": values["num_attention_heads"]}


def head_counts(sizes: Mapping[str, tuple[int, int, int]], stated: Mapping[str, int], path: Path) -> dict[str, int]:
    """image_heads and text_heads: the stated ones, else those of the published model with these shapes, with a warning.

    sizes: side, "image" or "text" -> width, layers and feed-forward width. Raises UserError for other shapes.
    """
    published = {f"{side}_heads": PUBLISHED_HEADS[side].get(size) for side, size in sizes.items()}
    heads = {name: stated.get(name, number) for name, number in published.items()}
    if unknown := [f"{name}=N" for name, number in heads.items() if number is None]:
        raise UserError(
            f"{path} does not say how many heads it has, and its shapes are of no published model; state them behind "
            f"its name, as in {path.name}:{','.join(unknown)}"
        )
    if guessed := [f"{number} {name.replace('_', ' ')}" for name, number in heads.items() if name not in stated]:
        warnings.warn(
            f"{path} does not say how many heads it has: {' and '.join(guessed)}, as the published model of its shapes",
            stacklevel=2,
        )
    return heads


def question_bridge(tensors: dict[str, Tensor], image: int, text: int) -> dict[str, Tensor]:
    """Weights that let a large VQA model's decoder read questions, of text width, in the wider image width.

    The bridge pads question states with zeros, and the decoder's keys and values ignore the padding.
    """
    pattern = re.compile(r"text_decoder\..*crossattention\.self\.(key|value)\.weight")
    wider = {name: F.pad(tensors[name], (0, image - text)) for name in filter(pattern.fullmatch, tensors)}
    return wider | {"question_bridge.weight": torch.eye(image, text), "question_bridge.bias": torch.zeros(image)}


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the folder of an original checkpoint, else BERT's from the hub."""
    if any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return Tokenizer.load(path.parent)
    try:
        return Tokenizer.load(from_hub(BERT, ("tokenizer.json", "vocab.txt")))
    except UserError:
        raise UserError(
            f"{path} has no vocabulary and {BERT} cannot be downloaded; put its vocab.txt beside the file"
        ) from None


# --- both layouts -----------------------------------------------------------------------------------------------------


def store_once(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights under the names by which a `Med` stores each of them once, without copies and buffers.

    Raises UserError if a pre-training model's decoder does not share its layers with the encoder.
    """
    keep = ("vision_model.", "text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.", "temp")
    out = {name: t for name, t in state.items() if name.startswith(keep) and not name.endswith("position_ids")}
    bias = out.pop("text_decoder.cls.predictions.decoder.bias", None)
    if bias is not None:
        out.setdefault("text_decoder.cls.predictions.bias", bias)
    if LM_WEIGHT in out and torch.equal(out[LM_WEIGHT], out[DECODER_EMBEDDINGS]):
        del out[LM_WEIGHT]
    if kind == "vqa":
        return out
    for name in [name for name in out if name.startswith("text_decoder.bert.") and ".attention." not in name]:
        encoder_name, tensor = name.replace("text_decoder.bert.", "text_encoder."), out.pop(name)
        if kind == "pretrained" and not torch.equal(tensor, out[encoder_name]):
            raise UserError(f"{name} of {kind} differs from {encoder_name}, which BLIP ties; use another checkpoint")
        out[encoder_name] = tensor
    return out


def count_layers(names: Iterable[str], prefix: str) -> int:
    """The number of layers under `prefix`. Raises ValueError if they are not numbered from 0."""
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{len(numbers)} layers of {prefix} up to number {max(numbers)}")
    return len(numbers)


def resize_positions(positions: Tensor, length: int) -> Tensor:
    """[CLS] and patch positions [1, 1+g*g, D] for another grid, bicubic as in BLIP's own code."""
    from timm.layers import resample_abs_pos_embed  # takes a second

    side = round((length - 1) ** 0.5)
    return resample_abs_pos_embed(positions, [side, side], antialias=False)
