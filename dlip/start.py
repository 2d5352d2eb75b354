"""Where a model's weights begin: at another model's, whole or in part, or at those of a published text encoder.

A shallower model takes evenly spaced layers, the first and the last among them; a narrower one the most important
channels (dlip/cut.py). Words are matched by what they are called, so that vocabularies may differ; what the source
lacks begins as it was.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.checkpoints import built_in_models, load_model, read_json, read_tensors, weights
from dlip.config import ModelConfig
from dlip.cut import cut
from dlip.data.tokenizer import Tokenizer
from dlip.errors import UserError
from dlip.vlm import VLM

PARTS = {"image": ("vision_",), "text": ("text_", "itm_head", "question_bridge"), "": ("",)}
"""Part -> how the names of its weights begin; "" stands for the whole model."""
_LAYER = re.compile(r"(.*\blayers?)\.(\d+)\.(.*)")
_WORDS = ("word_embeddings.weight", "predictions.bias")


def begin(model: VLM, source: str) -> list[str]:
    """Copies weights of `source` into `model` and returns the names of those that were copied.

    source: a model that `dlip` has written or ships, or a folder of a BERT (config.json, model.safetensors, its
    vocabulary); with "image=" or "text=" before it that part alone. Raises UserError where there is no such source or
    where it is shallower or narrower than the model.
    """
    part, _, name = source.partition("=")
    if part not in PARTS:
        part, name = "", source
    tensors, tokenizer, config = _read(name, model.med.config)
    own, copied = weights(model.med), []
    depth, theirs = _depths(own), _depths(tensors)
    twins = {key: _twin(key, depth, theirs) for key in own}
    found = cut({key: tensors[twin] for key, twin in twins.items() if twin in tensors}, config, model.med.config)
    for key in (key for key in found if key.startswith(PARTS[part])):  # cut as a whole, so that parts fit each other
        parameter, value = own[key], found[key]
        if key.endswith(_WORDS):
            value = _by_word(parameter, value, model.tokenizer, tokenizer)
        elif key.endswith("position_embeddings.weight"):
            value = torch.cat([value, parameter[len(value) :]])[: len(parameter)]
        elif key.endswith("position_embedding"):
            value = _on_grid(value, parameter.shape[1])
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
    return copied


def _read(name: str, ours: ModelConfig) -> tuple[dict[str, Tensor], Tokenizer, ModelConfig]:
    """Weights under this project's names, the vocabulary that their rows are of, and their sizes."""
    folder = Path(name)
    if name in built_in_models() or "model" in read_json(folder / "config.json"):
        med, tokenizer = load_model(name)
        return weights(med), tokenizer, med.config
    config = read_json(folder / "config.json")
    if (kind := config.get("model_type")) != "bert":
        raise UserError(f"{folder} holds a model of type {kind!r}; a model can start from a dlip model or a BERT")
    sizes = {"text_width": "hidden_size", "text_heads": "num_attention_heads", "text_mlp": "intermediate_size"}
    try:
        theirs = replace(ours, **{own: config[their] for own, their in sizes.items()})
    except KeyError as missing:
        raise UserError(f"{folder / 'config.json'} lacks {missing}; take the whole of a BERT's folder") from None
    return _bert(read_tensors(folder / "model.safetensors")[0]), Tokenizer.load(folder), theirs


def _bert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A BERT's weights as a text encoder's, and its self-attention as the decoder's, as BLIP begins its own.

    Segment 0 is added to the positions, which gives the same sums.
    """
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    segments = tensors.pop("embeddings.token_type_embeddings.weight")
    tensors["embeddings.position_embeddings.weight"] = tensors["embeddings.position_embeddings.weight"] + segments[0]
    encoder = {f"text_encoder.{name}": tensor for name, tensor in tensors.items()}
    return {**encoder, **{f"text_decoder.bert.{name}": tensor for name, tensor in tensors.items()}}


def _depths(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name of a stack of layers -> how many it has."""
    found: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, tensors)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _twin(name: str, depth: dict[str, int], theirs: dict[str, int]) -> str:
    """The source's name for a weight: layer i of n is layer i (m - 1) / (n - 1) of m."""
    match = _LAYER.fullmatch(name)
    if not match or match[1] not in theirs:
        return name
    n, m = depth[match[1]], theirs[match[1]]
    if n > m:
        raise UserError(f"the source has {m} layers in {match[1]}, the model {n}; start a model that is no deeper")
    layer = m - 1 if n == 1 else round(int(match[2]) * (m - 1) / (n - 1))
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


def _on_grid(value: Tensor, length: int) -> Tensor:
    """[CLS] and patch positions [1, 1+g*g, D] on another grid, bicubic as BLIP's own code interpolates them."""
    old, new = (round((n - 1) ** 0.5) for n in (value.shape[1], length))
    patches = value[:, 1:].transpose(1, 2).unflatten(-1, (old, old))
    patches = F.interpolate(patches, (new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    return value if old == new else torch.cat([value[:, :1], patches], 1)
