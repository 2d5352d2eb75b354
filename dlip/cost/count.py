"""Counted cost of a model: parameters and FLOPs by module and by task. `dlip.cost.latency` measures it.

**Parameters** are all stored tensors that inference needs, tied ones once, without momentum encoders and the
projections of distillation. **FLOPs** are 2 per multiply-accumulate of every executed matrix product, attention's
included (a causal map as a full square). Norms, softmax, activations, biases, sums and look-ups are not counted.

**The paper's count** (arXiv 2308.12956, its table of sizes), found by reproducing its figures:

- Parameters: image encoder without class token and positions, which reproduces all four printed figures within 0.2%;
  text encoder with cross-attention in every layer. Neither heads nor the decoder's own self-attention.
- "FLOPs": multiply-accumulates of the linear layers and the patch embedding, at 224 px; of the text encoder those of 30
  tokens read alone, so that cross-attention is in its parameters but not in its "FLOPs". Attention products are not
  counted. Ours are up to 0.5% below the print; 5 more per value that a layer norm puts out close the gap.
- Not reproduced: BERT-Base's 2.25G, which reads like a misprint of 2.55G; BERT-Middle's 0.88G, BERT-Tiny's 9.61M and
  0.10G, whose feed-forward width is not published. We take 4x (2,304 and 768); no width gives both figures.
  BLIP-Base's 213.6M and 17.8G and DLIP-Small's 4.4G are not the sums of their parts in the paper either.
"""

from collections import Counter
from dataclasses import dataclass

from dlip.models.backbone import backbone_size
from dlip.models.config import ModelConfig
from dlip.models.protocol import Model
from dlip.models.tasks import TASKS

TEXT_TOKENS = 30
"""Default tokens of an input text; the paper's."""
NEW_TOKENS = {"captioning": 20, "vqa": 3}
"""Default tokens of a generated text, including [SEP]."""


# --- parameters -------------------------------------------------------------------------------------------------------


def params(c: ModelConfig) -> dict[str, int]:
    """Parameters by module, computed from the sizes.

    image (a backbone with the statistics of its batch norms); embeddings (tokens and positions), text_self and
    text_ffn (self-attention and feed-forward) of the text encoder; fusion (its cross-attention); decoder (what it does
    not share with the text encoder: its self-attention if they are tied); lm_head (without its matrix if that is tied
    to the token embeddings); itc (two projections and the temperature); itm; bridge (question states to the image's
    width, if the widths differ).
    """
    di, d, n = c.image_width, c.text_width, c.text_layers
    mlp = _linear(di, c.image_mlp) + _linear(c.image_mlp, di)
    layer = _linear(di, 3 * di) + _linear(di, di) + mlp + 4 * di  # and two norms
    if c.image_backbone:
        backbone = backbone_size(c.image_backbone, c.image_size)
        patches = backbone.params + _linear(backbone.channels, di)
    else:
        patches = _linear(3 * c.patch_size**2, di)
    out = {
        "image": patches + _image_positions(c) + c.image_layers * layer + 2 * di,
        "embeddings": (c.vocab_size + c.max_positions + 2) * d,
        "text_self": n * (4 * _linear(d, d) + 2 * d),
        "text_ffn": n * (_linear(d, c.text_mlp) + _linear(c.text_mlp, d) + 2 * d),
        "fusion": len(c.fusion_layers) * (2 * _linear(d, d) + 2 * _linear(di, d) + 2 * d),
    }
    shared = 0 if c.tie_decoder else out["embeddings"] + out["text_ffn"] + out["fusion"]
    return out | {
        "decoder": out["text_self"] + shared,
        "lm_head": _linear(d, d) + 2 * d + c.vocab_size * (1 if c.tie_head else 1 + d),
        "itc": _linear(di, c.embed_dim) + _linear(d, c.embed_dim) + 1,
        "itm": _linear(d, 2),
        "bridge": 0 if di == d else _linear(d, di),
    }


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _image_positions(c: ModelConfig) -> int:
    return (c.grid**2 + 2) * c.image_width  # positions of patches and class token, and the class token


def task_modules(c: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Task of `TASKS` -> the modules that inference of it needs."""
    text = ("embeddings", "text_self", "text_ffn", "fusion")
    shared = ("embeddings", "text_ffn", "fusion") if c.tie_decoder else ()
    return {
        "retrieval": ("image", *text, "itc", "itm"),
        "captioning": ("image", *shared, "decoder", "lm_head"),
        "vqa": ("image", *text, "bridge", "decoder", "lm_head"),
    }


def task_params(c: ModelConfig) -> dict[str, int]:
    """Parameters of a model for one task of `TASKS`, and for "all"."""
    count = params(c)
    alone = {task: sum(count[name] for name in names) for task, names in task_modules(c).items()}
    return alone | {"all": sum(count.values())}


def needed_params(model: Model) -> dict[str, int]:
    """Parameters by module, as in `params`, that a model's abilities need, over all its members.

    A CLIP or SigLIP has image, text, and itc (projections, temperature and bias).
    """
    out: Counter[str] = Counter()
    for member in model.members:
        if member.stock:
            out.update(_stock_params(member))
            continue
        count, modules = params(member.config), task_modules(member.config)
        tasks = [name for name, task in TASKS.items() if member.abilities & {*task.abilities}]
        needed = {name for task in tasks for name in modules[task]}
        out.update({name: number if name in needed else 0 for name, number in count.items()})
    return dict(out)


def _stock_params(model: Model) -> Counter[str]:
    count: Counter[str] = Counter()
    for name, parameter in model.model.named_parameters():
        module = {"vision_model": "image", "text_model": "text"}.get(name.split(".")[0], "itc")
        count["itc" if name.startswith("text_model.head.") else module] += parameter.numel()
    return count


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates."""

    linear: int = 0
    """In linear layers and the patch embedding."""
    attention: int = 0
    """Of queries with keys and of attention maps with values."""

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> "Macs":
        return Macs(self.linear * times, self.attention * times)

    @property
    def flops(self) -> int:
        return 2 * (self.linear + self.attention)


def image_macs(c: ModelConfig) -> Macs:
    """Of the image encoder for one image, without SigLIP's pooling."""
    d, patches = c.image_width, c.grid**2
    tokens = patches + c.class_token
    layer = Macs(tokens * (4 * d * d + 2 * d * c.image_mlp), 2 * tokens * tokens * d)
    if not c.image_backbone:
        return layer * c.image_layers + Macs(patches * 3 * c.patch_size**2 * d)
    backbone = backbone_size(c.image_backbone, c.image_size)
    return layer * c.image_layers + Macs(backbone.macs + patches * backbone.channels * d)


def text_macs(c: ModelConfig, tokens: int, keys: int | None = None) -> Macs:
    """Of self-attention and feed-forward in all text layers, for `tokens` that attend to `keys` or to each other."""
    d, keys = c.text_width, tokens if keys is None else keys
    return Macs(tokens * (4 * d * d + 2 * d * c.text_mlp), 2 * tokens * keys * d) * c.text_layers


def context_macs(c: ModelConfig, context: int) -> Macs:
    """Of cross-attention's keys and values for `context` tokens, computed once for each image or question."""
    return Macs(context * 2 * c.image_width * c.text_width) * len(c.fusion_layers)


def cross_macs(c: ModelConfig, tokens: int, context: int) -> Macs:
    """Of cross-attention in all fusion layers, without its keys and values."""
    d = c.text_width
    return Macs(tokens * 2 * d * d, 2 * tokens * context * d) * len(c.fusion_layers)


def step_macs(c: ModelConfig, tokens: int, before: int, context: int) -> Macs:
    """Of one decoder step: `tokens` new ones after `before` cached ones, and the logits of the next token."""
    lm_head = Macs(c.text_width * c.text_width + c.text_width * c.vocab_size)
    return text_macs(c, tokens, before + tokens) + cross_macs(c, tokens, context) + lm_head


def decoder_macs(c: ModelConfig, context: int, prompt: int, new: int, beams: int) -> Macs:
    """Of generating `new` tokens after `prompt` ones for one context, with cached keys and values."""
    out = context_macs(c, context) + step_macs(c, prompt, 0, context)
    for before in range(prompt, prompt + new - 1):  # the last token is generated, not read
        out += step_macs(c, 1, before, context) * beams
    return out


def task_macs(
    c: ModelConfig,
    task: str,
    text_tokens: int = TEXT_TOKENS,
    new_tokens: int | None = None,
    beams: int = 1,
    texts: int = 1,
) -> dict[str, Macs]:
    """Multiply-accumulates of one task for one image, by pass; `.flops` of each gives FLOPs.

    retrieval: image, text (texts alone), fusion (texts with the image: self-attention, cross-attention, feed-forward),
    heads (ITC and ITM), for `texts` texts. captioning: image, decoder with LM head for `new_tokens`. vqa: image, fusion
    (the question with its image, and the bridge), decoder over the question's states.
    """
    new_tokens, image, image_tokens = new_tokens or NEW_TOKENS.get(task, 0), image_macs(c), c.grid**2 + 1
    text = text_macs(c, text_tokens) * texts
    fusion = context_macs(c, image_tokens) + text + cross_macs(c, text_tokens, image_tokens) * texts
    if task == "retrieval":
        heads = Macs(c.image_width * c.embed_dim) + Macs((c.text_width + 1) * c.embed_dim + 2 * c.text_width) * texts
        return {"image": image, "text": text, "fusion": fusion, "heads": heads}
    if task == "captioning":
        return {"image": image, "decoder": decoder_macs(c, image_tokens, 1 + len(c.prompt_ids), new_tokens, beams)}
    bridge = Macs(text_tokens * c.text_width * c.image_width if c.image_width != c.text_width else 0)
    decoder = decoder_macs(c, text_tokens, 1, new_tokens, beams)
    return {"image": image, "fusion": fusion + bridge, "decoder": decoder}


def retrieval_macs(
    model: Model, matched: bool = True, text_tokens: int = TEXT_TOKENS, texts: int = 1
) -> dict[str, Macs]:
    """`task_macs` of retrieval for a model of any kind; without the fusion where ITM is not `matched`."""
    c = model.config
    if not model.stock:
        macs = task_macs(c, "retrieval", text_tokens=text_tokens, texts=texts)
        return macs if matched else {name: one for name, one in macs.items() if name != "fusion"}
    tokens = c.max_text if model.tokenizer.fixed_length else min(text_tokens, c.max_text)
    d, patches = c.image_width, c.grid**2
    image = image_macs(c) + Macs(patches * c.resized_positions * d)
    if not c.class_token:  # a query reads the patches, then a feed-forward
        image += Macs(2 * d * d + 2 * patches * d * d + 2 * d * c.image_mlp, 2 * patches * d)
    heads = Macs(d * c.embed_dim if c.class_token else 0)
    heads += Macs(c.text_width * c.embed_dim + c.embed_dim) * texts
    return {"image": image, "text": text_macs(c, tokens) * texts, "heads": heads}


def paper_count(c: ModelConfig) -> dict[str, int]:
    """Parameters and multiply-accumulates of both encoders in the paper's count (see the top of this file)."""
    count = params(c)
    return {
        "image_params": count["image"] - _image_positions(c),
        "text_params": count["embeddings"] + count["text_self"] + count["text_ffn"] + count["fusion"],
        "image_macs": image_macs(c).linear,
        "text_macs": text_macs(c, TEXT_TOKENS).linear,
    }


# --- for records ------------------------------------------------------------------------------------------------------

COUNTED = (
    "params_m: millions of stored tensors, tied ones once. flops_g: 2 per multiply-accumulate of all matrix "
    f"products, attention's too, of one image and one text of {TEXT_TOKENS} tokens (image encoder, text encoder, "
    "fusion, ITC, ITM, also of a model without ITM), which is the task retrieval; captioning is "
    f"{NEW_TOKENS['captioning']} tokens, vqa {NEW_TOKENS['vqa']} for a question of {TEXT_TOKENS}, both greedy. "
    "params_m_paper, macs_g_paper: image and text encoder in the paper's count, which is multiply-accumulates "
    "of linear layers only, the text read alone."
)
STOCK_COUNTED = (
    "params_m: millions of stored tensors. flops_g: 2 per multiply-accumulate of all matrix products, attention's too, "
    f"of one image and one text (of {TEXT_TOKENS} tokens, or of the full length where padding is read), which is the "
    "task retrieval."
)


def summary(model: Model) -> dict:
    """A model's cost as records hold it; "counted" explains each figure.

    For a model with some abilities only, or of several checkpoints, parameters are those that its abilities need;
    FLOPs, the paper's count and parameters by task are of its (first) configuration. A CLIP's or SigLIP's has neither
    the paper's count nor parameters by task.
    """
    c, count, stored = model.config, needed_params(model), list(model.parameters())
    bytes_each = sum(p.nbytes for p in stored) / sum(p.numel() for p in stored)
    macs = {"retrieval": retrieval_macs(model)}
    if not model.stock:
        macs |= {task: task_macs(c, task) for task in TASKS}
    flops = {task: sum(m.flops for m in passes.values()) for task, passes in macs.items()}
    out = {
        "params_m": sum(count.values()) / 1e6,
        "weights_mb": bytes_each * sum(count.values()) / 1e6,
        "flops_g": flops["retrieval"] / 1e9,
        "params_by_module": count,
        "flops_by_module": {name: m.flops for name, m in macs["retrieval"].items()},
        "flops_by_task": flops,
        "counted": STOCK_COUNTED if model.stock else COUNTED,
    }
    if model.stock:
        return out
    paper = paper_count(c)
    return out | {
        "macs_g_paper": (paper["image_macs"] + paper["text_macs"]) / 1e9,
        "params_m_paper": (paper["image_params"] + paper["text_params"]) / 1e6,
        "params_by_task": task_params(c),
    }
