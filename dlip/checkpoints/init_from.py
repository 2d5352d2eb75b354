"""Where a model's weights begin: at another model's, whole or in part, or at those of a published encoder of one side.

A shallower model takes the layers that are named or evenly spaced ones, the first and the last among them; a narrower
one the most important channels (dlip/checkpoints/prune.py). Words are matched by what they are called, so that
vocabularies may differ; what the source lacks begins as it was.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlip.checkpoints import encoders
from dlip.checkpoints.blip import on_grid
from dlip.checkpoints.load import locate, read_model, sized
from dlip.checkpoints.prune import cut
from dlip.checkpoints.tensors import checkpoint_errors, weights
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.common.text import plural
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig

if TYPE_CHECKING:
    from dlip.vlm import VLM

PARTS = {
    "image": "vision_",
    "text": "text_|itm_head|question_bridge",
    "language": "text_(encoder|decoder)(?!.*crossattention)",
    "": "",
}
"""Part -> a pattern that the names of its weights begin with: the image encoder and its projection, all else, what of
that a BERT has (words, self-attention, feed-forward, the next word's head), the whole model."""
_LAYER = re.compile(r"(.*\blayers?)\.(\d+)\.(.*)")
_WORDS = ("word_embeddings.weight", "predictions.bias")


def initialize(model: "VLM", source: str) -> list[str]:
    """Copies weights of `source` into `model` and returns the names of those that were copied.

    A model that begins as another can do from the start what that one can.

    source: any one model that `dlip.load` takes, or the folder or hub id of a BERT, ViT or DeiT, or a ViT's file in
    timm's layout; with "image=", "text=" or "language=" before it that part (`PARTS`) alone; with ":0+3+7" behind it
    these layers, counted from 0, as the model's first, second and third. Raises UserError where there is no such source
    or layer or where it is shallower or narrower than the model.
    """
    part, name, chosen = parsed(source)
    tensors, tokenizer, config, able = _read(name, model.med.config)
    own, copied = weights(model.med), []
    depth, theirs = _depths(own), _depths(tensors)
    with checkpoint_errors(Path(name)):
        wanted = [key for key in own if re.match(PARTS[part], key)]
        twins = {key: _twin(key, depth, theirs, chosen) for key in wanted}
        # cut as a whole, so that parts fit each other; what is not taken may be shallower than the model
        twins |= {
            key: _twin(key, depth, theirs, None) for key in own if key not in twins and _reaches(key, depth, theirs)
        }
        there = {key: tensors[twin] for key, twin in twins.items() if twin in tensors}
        for key, value in cut(there, config, model.med.config, wanted).items():
            parameter = own[key]
            if key.endswith(_WORDS):
                value = _by_word(parameter, value, model.tokenizer, tokenizer)
            elif key.endswith("position_embeddings.weight"):
                value = torch.cat([value, parameter[len(value) :]])[: len(parameter)]
            elif key.endswith("position_embedding"):
                value = on_grid(value.float(), parameter.shape[1])
            elif key.endswith("patch_embedding.weight"):
                value = encoders.on_patch(value, parameter.shape[-1])
            if value.shape != parameter.shape:
                raise UserError(
                    f"{name} cannot start this model: its {key} is {list(value.shape)}, not {list(parameter.shape)}; "
                    f"choose a size that agrees with it"
                )
            with torch.no_grad():
                parameter.copy_(value)
            copied.append(key)
    if not copied:
        raise UserError(f"{name} has no weights for the {part or 'model'}; choose another source")
    if not part:
        model.med.abilities |= able
    return copied


def parsed(source: str) -> tuple[str, str, tuple[int, ...] | None]:
    """A `source` of `begin` as part, model's name and layers."""
    part, _, name = source.partition("=")
    if part not in PARTS:
        part, name = "", source
    name, layers = re.fullmatch(r"(.*?)(?::(\d+(?:\+\d+)*))?", name, re.DOTALL).groups()
    return part, name, tuple(map(int, layers.split("+"))) if layers else None


def _read(name: str, ours: ModelConfig) -> tuple[dict[str, Tensor], Tokenizer | None, ModelConfig, frozenset[str]]:
    """Weights under this project's names, the vocabulary that their rows are of, if any, their sizes and tasks."""
    path = locate(sized(name)[0])
    with checkpoint_errors(path):
        return _source(name, path, ours)


def _source(name: str, path: Path, ours: ModelConfig):
    values = read_json(path / "config.json") if path.is_dir() else {}
    if path.is_file() and encoders.is_timm(path) or "architecture" in values:
        tensors, theirs = encoders.timm(path, ours)
    elif values.get("model_type") in ("vit", "deit"):
        tensors, theirs = encoders.vit(path, ours)
    elif values.get("model_type") == "bert":
        tensors, theirs = encoders.bert(path, ours)
        return tensors, Tokenizer.load(path), theirs, frozenset()
    else:
        source = read_model(name)
        if source.precision != "fp32":
            raise UserError(f"{name} is in {source.precision}, where no weights can begin; take what it was made from")
        return source.tensors, source.tokenizer, source.config, source.abilities
    return tensors, None, theirs, frozenset()


def _depths(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name of a stack of layers -> how many it has."""
    found: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, tensors)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _reaches(name: str, depth: dict[str, int], theirs: dict[str, int]) -> bool:
    """Whether the source is deep enough for the stack that a weight is in."""
    match = _LAYER.fullmatch(name)
    return not match or match[1] not in theirs or depth[match[1]] <= theirs[match[1]]


def _twin(name: str, depth: dict[str, int], theirs: dict[str, int], chosen: tuple[int, ...] | None) -> str:
    """The source's name for a weight: layer i of n is the i-th chosen one or layer i (m - 1) / (n - 1) of m."""
    match = _LAYER.fullmatch(name)
    if not match or match[1] not in theirs:
        return name
    n, m, i = depth[match[1]], theirs[match[1]], int(match[2])
    if chosen:
        if len(chosen) != n or max(chosen) >= m:
            raise UserError(
                f"{match[1]} has {plural(n, 'layer')} here and {m} in the source; choose {n} of 0 to {m - 1}"
            )
        return f"{match[1]}.{chosen[i]}.{match[3]}"
    if n > m:
        raise UserError(
            f"the source has {plural(m, 'layer')} in {match[1]}, the model {n}; start a model that is no deeper"
        )
    layer = m - 1 if n == 1 else round(i * (m - 1) / (n - 1))
    return f"{match[1]}.{layer}.{match[3]}"


def _by_word(own: Tensor, value: Tensor, words: Tokenizer, theirs: Tokenizer) -> Tensor:
    """Rows of `value` under the ids that our vocabulary gives them; rows of words that it lacks stay `own`."""
    if value.shape[1:] != own.shape[1:]:
        return value
    out, vocabulary = own.detach().clone(), theirs.fast.get_vocab()
    for word, i in words.fast.get_vocab().items():
        if vocabulary.get(word, len(value)) < len(value):
            out[i] = value[vocabulary[word]]
    return out
