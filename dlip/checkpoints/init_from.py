"""Initialization of a model from another model, whole or in part, or from a published encoder of one side.

A shallower model takes evenly spaced layers, the first and the last among them; a narrower one takes the most important
channels (dlip/checkpoints/prune.py). Word embeddings are matched by token, so that vocabularies may differ. What the
source lacks keeps its values.
"""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlip.checkpoints import encoders
from dlip.checkpoints.backbones import IMAGENET, load_imagenet
from dlip.checkpoints.blip import Checkpoint, resize_positions
from dlip.checkpoints.load import locate, parse_name, read_model
from dlip.checkpoints.prune import prune
from dlip.checkpoints.tensors import checkpoint_errors, weights
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig
from dlip.models.med import Med

if TYPE_CHECKING:
    from dlip.vlm import VLM

PARTS = {
    "image": "vision_",
    "backbone": r"vision_model\.embeddings\.backbone\.",
    "text": "text_|itm_head|question_bridge",
    "language": "text_(encoder|decoder)(?!.*crossattention)",
    "": "",
}
"""Part -> pattern of its weights' names. image: image encoder and its projection; backbone: its backbone; text: all
else; language: what of the text side a BERT has (embeddings, self-attention, feed-forward, LM head); "": the whole."""
_LAYER = re.compile(r"(.*\blayers?)\.(\d+)\.(.*)")
_PER_TOKEN = ("word_embeddings.weight", "predictions.bias", "predictions.decoder.weight")


def initialize(model: "VLM", source: str) -> list[str]:
    """Copy weights of `source` into `model` and return the names of the copied ones.

    source: a model that `dlip.load` takes, or the folder or hub id of a BERT, ViT or DeiT, or a ViT file in timm's
    layout; "image=", "backbone=", "text=" or "language=" before it takes that part alone (`PARTS`). "backbone=imagenet"
    takes a backbone's published weights. A whole source also passes on its abilities. Raises UserError if there is no
    such source, or if it is shallower or narrower than the model.
    """
    part, name = parse_source(source)
    if (part, name) == ("backbone", IMAGENET):
        return _initialize_backbone(model.med)
    checkpoint = _read(name, model.med.config)
    source_backbone, backbone = checkpoint.config.image_backbone, model.med.config.image_backbone
    if part in ("", "image", "backbone") and source_backbone and backbone and source_backbone != backbone:
        raise UserError(
            f"{name} has the image backbone {source_backbone}, the model {backbone}; choose a size with "
            f"{source_backbone}"
        )
    own, copied, tensors = weights(model.med), [], checkpoint.tensors
    depths, source_depths = _depths(own), _depths(tensors)
    with checkpoint_errors(Path(name)):
        taken = [key for key in own if re.match(PARTS[part], key)]
        others = [key for key in own if key not in taken]  # pruned together, so that parts fit each other
        names = {key: _source_name(key, depths, source_depths) for key in [*taken, *others]}
        if shallow := [key for key in taken if names[key] is None]:
            raise UserError(f"the source has too few layers for {shallow[0]} of the model; choose a model no deeper")
        available = {key: tensors[name] for key, name in names.items() if name in tensors}
        for key, value in prune(available, checkpoint.config, model.med.config, taken).items():
            value = _fit(key, value, own[key], model.tokenizer, checkpoint.tokenizer)
            if value.shape != own[key].shape:
                raise UserError(
                    f"{name} cannot initialize this model: its {key} is {list(value.shape)}, not "
                    f"{list(own[key].shape)}; choose a model size that agrees with it"
                )
            with torch.no_grad():
                own[key].copy_(value)
            copied.append(key)
    if not copied:
        raise UserError(f"{name} has no weights for the {part or 'model'}; choose another source")
    if not part and checkpoint.abilities:
        model.med.abilities |= checkpoint.abilities
        if checkpoint.tokenizer.vocabulary != model.tokenizer.vocabulary:
            warnings.warn(
                f"{name} has another vocabulary than the model: words that it lacks keep random weights; --tokenizer "
                f"{name} gives the model its vocabulary",
                stacklevel=2,
            )
    return copied


def check_backbone(config: ModelConfig, sources: Iterable[str], trained: bool) -> None:
    """Raise UserError for an image backbone that nothing initializes and that is not `trained` either."""
    begun = trained or any(parse_source(source)[0] in ("", "image", "backbone") for source in sources)
    if config.image_backbone and not begun:
        raise UserError(
            f"{config.image_backbone} would stay random, as it is frozen; add --init-from backbone=imagenet, or train "
            "it with --backbone-lr"
        )


def _initialize_backbone(med: Med) -> list[str]:
    if not med.config.image_backbone:
        raise UserError(
            "the model has no image backbone; give its size one, as in image_backbone=tf_efficientnet_lite0"
        )
    load_imagenet(med.vision_model.embeddings.backbone, med.config.image_backbone)
    return [name for name in weights(med) if re.match(PARTS["backbone"], name)]


def parse_source(source: str) -> tuple[str, str]:
    """The part of `PARTS` and the model's name of a `source` of `initialize`."""
    part, _, name = source.partition("=")
    return (part, name) if part in PARTS else ("", source)


def _read(name: str, like: ModelConfig) -> Checkpoint:
    """The source's files; a published encoder has no abilities, and an image encoder no tokenizer."""
    parsed = parse_name(name)
    path = locate(parsed.name)
    with checkpoint_errors(path):
        values = read_json(path / "config.json") if path.is_dir() else {}
        if path.is_file() and encoders.is_timm(path) or "architecture" in values:
            return Checkpoint(*encoders.read_timm(path, like, parsed.heads), None, frozenset())
        if values.get("model_type") in ("vit", "deit"):
            return Checkpoint(*encoders.read_vit(path, like), None, frozenset())
        if values.get("model_type") == "bert":
            return Checkpoint(*encoders.read_bert(path, like), Tokenizer.load(path), frozenset())
        checkpoint = read_model(name)
        if checkpoint.precision != "fp32":
            raise UserError(f"{name} is in {checkpoint.precision}; initialize from its fp32 original")
        return checkpoint


def _fit(key: str, value: Tensor, own: Tensor, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None) -> Tensor:
    """A weight of the source for the model's vocabulary, number of positions, image grid or patch size."""
    if key.endswith(_PER_TOKEN):
        return _match_tokens(own, value, tokenizer, source_tokenizer)
    if value.shape == own.shape:
        return value
    if key.endswith("position_embeddings.weight"):
        return torch.cat([value, own[len(value) :]])[: len(own)]
    if key.endswith("position_embedding"):
        return resize_positions(value.float(), own.shape[1])
    if key.endswith("patch_embedding.weight") and value.ndim == own.ndim == 4:
        from timm.layers import resample_patch_embed  # takes a second

        # an image enlarged bilinearly gives the same tokens as before: FlexiViT (arXiv 2212.08013), section 3.4
        return resample_patch_embed(value.float(), [*own.shape[-2:]], "bilinear", antialias=False)
    return value


def _depths(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name of a stack of layers -> number of layers."""
    depths: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, tensors)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def _source_name(name: str, depths: dict[str, int], source_depths: dict[str, int]) -> str | None:
    """The source's name for a weight: layer i of n is the source's layer i (m - 1) / (n - 1) of m; None if n > m."""
    match = _LAYER.fullmatch(name)
    if not match or match[1] not in source_depths:
        return name
    n, m, i = depths[match[1]], source_depths[match[1]], int(match[2])
    layer = m - 1 if n == 1 else round(i * (m - 1) / (n - 1))
    return f"{match[1]}.{layer}.{match[3]}" if n <= m else None


def _match_tokens(own: Tensor, value: Tensor, tokenizer: Tokenizer, source_tokenizer: Tokenizer) -> Tensor:
    """Rows of `value` moved to the ids of the model's vocabulary; tokens that the source lacks keep their own rows."""
    if value.shape[1:] != own.shape[1:]:
        return value
    out, vocabulary = own.detach().clone(), source_tokenizer.fast.get_vocab()
    for token, i in tokenizer.fast.get_vocab().items():
        if vocabulary.get(token, len(value)) < len(value):
            out[i] = value[vocabulary[token]]
    return out
