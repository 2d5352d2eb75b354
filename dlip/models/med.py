"""The MED of BLIP: image encoder (ViT), text encoder with cross-attention, text decoder, and heads.

Parameter names are those of Hugging Face's BLIP, so that state dicts load there unchanged.
Shapes: B images, N texts of T tokens, P patches, widths Di (image), Dt (text) and E (shared by ITC), H heads of width
d, vocabulary V.
Source: Li et al., BLIP (arXiv 2201.12086), section 3.1; Kuang et al., DLIP (arXiv 2308.12956), section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.attention_kernel import attend
from dlip.models.config import ModelConfig
from dlip.models.fast.linear import Linear
from dlip.models.features import Features, Trace, Want
from dlip.models.grid_resize import normalized
from dlip.models.patches import PatchEmbeddings
from dlip.models.protocol import Model
from dlip.models.tasks import SOURCES
from dlip.models.token_ids import first_token, next_tokens, trim, with_prompt

KeysValues = tuple[Tensor, Tensor]


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, T, D] -> [N, H, T, d]


# --- image encoder ----------------------------------------------------------------------------------------------------


class ImageAttention(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads = c.image_heads
        self.qkv = Linear(c.image_width, 3 * c.image_width)
        self.projection = Linear(c.image_width, c.image_width)

    def forward(self, x: Tensor, want_map: bool) -> tuple[Tensor, Tensor | None]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        out, probs = attend(q, k, v, None, False, want_map)
        return self.projection(out), probs


class ImageMLP(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.fc1 = Linear(c.image_width, c.image_mlp)
        self.fc2 = Linear(c.image_mlp, c.image_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x, gelu=True))


class ImageLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.self_attn = ImageAttention(c)
        self.layer_norm1 = nn.LayerNorm(c.image_width, c.image_eps)
        self.mlp = ImageMLP(c)
        self.layer_norm2 = nn.LayerNorm(c.image_width, c.image_eps)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, want_map: bool) -> tuple[Tensor, Tensor | None]:
        out, probs = self.self_attn(self.layer_norm1(x), want_map)
        x = x + self.drop(out)
        return x + self.drop(self.mlp(self.layer_norm2(x))), probs


class ImageEncoder(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.embeddings = PatchEmbeddings(c)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ImageLayer(c) for _ in range(c.image_layers))
        self.post_layernorm = nn.LayerNorm(c.image_width, c.image_eps)

    def forward(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        trace = trace or Trace()
        x = self.embeddings(pixels)
        for i, layer in enumerate(self.encoder.layers):
            x, probs = layer(x, trace.wants("self", i))
            trace.keep("self", i, probs)
            trace.keep("states", i, x)
        x = self.post_layernorm(x)
        trace.keep("states", len(self.encoder.layers) - 1, x)  # the last layer's are normalized
        return x  # [B, P+1, Di]


# --- text layers ------------------------------------------------------------------------------------------------------


class TextEmbeddings(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(c.vocab_size, c.text_width, padding_idx=c.pad_id)
        self.position_embeddings = nn.Embedding(c.max_positions, c.text_width)
        self.LayerNorm = nn.LayerNorm(c.text_width, c.text_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        positions = self.position_embeddings.weight[start : start + ids.shape[1]]
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + positions))  # [N, T, Dt]


class TextProjections(nn.Module):
    """Query, key and value projections; keys and values may come from states of another width."""

    def __init__(self, c: ModelConfig, key_width: int):
        super().__init__()
        self.heads = c.text_heads
        self.query = Linear(c.text_width, c.text_width)
        self.key = Linear(key_width, c.text_width)
        self.value = Linear(key_width, c.text_width)

    def keys_values(self, x: Tensor) -> KeysValues:
        return split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)  # [N, H, T, d] each


class ResidualNorm(nn.Module):
    """Linear layer, dropout, and layer norm over the sum with the residual (post-norm)."""

    def __init__(self, c: ModelConfig, width: int):
        super().__init__()
        self.dense = Linear(width, c.text_width)
        self.LayerNorm = nn.LayerNorm(c.text_width, c.text_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class TextAttention(nn.Module):
    def __init__(self, c: ModelConfig, key_width: int):
        super().__init__()
        self.self = TextProjections(c, key_width)
        self.output = ResidualNorm(c, c.text_width)

    def forward(self, x: Tensor, kv: KeysValues, mask: Tensor | None, causal: bool, want_map: bool):
        """x [N, T, Dt]; kv of N contexts, or of B contexts that N / B consecutive texts share."""
        q, n, contexts = split_heads(self.self.query(x), self.self.heads), x.shape[0], kv[0].shape[0]  # q [N, H, T, d]
        if n != contexts:  # put the texts of one context side by side in one query
            q = q.unflatten(0, (contexts, n // contexts)).transpose(1, 2).flatten(2, 3)  # [B, H, N/B*T, d]
        out, probs = attend(q, *kv, mask, causal, want_map)
        out = out.reshape(x.shape)
        if probs is not None and n != contexts:
            probs = probs.unflatten(2, (n // contexts, -1)).transpose(1, 2).flatten(0, 1)
        return self.output(out, x), probs


class TextLayer(nn.Module):
    """Post-norm transformer layer: self-attention, cross-attention (in fusion layers), feed-forward."""

    def __init__(self, c: ModelConfig, fusion: bool):
        super().__init__()
        self.attention = TextAttention(c, c.text_width)
        if fusion:
            self.crossattention = TextAttention(c, c.image_width)
        self.intermediate = nn.Module()
        self.intermediate.dense = Linear(c.text_width, c.text_mlp)
        self.output = ResidualNorm(c, c.text_mlp)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate.dense(x, gelu=True), x)


class TextEncoder(nn.Module):
    """Text layers that read a text alone, together with an image (`cross`), or causally as a decoder."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(c)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(TextLayer(c, i in c.fusion_layers) for i in range(c.text_layers))

    def cross(self, context: Tensor) -> list[KeysValues | None]:
        """Cross-attention keys and values of `context` [B, S, Di], a pair for each fusion layer, else None."""
        layers = self.encoder.layer
        return [x.crossattention.self.keys_values(context) if hasattr(x, "crossattention") else None for x in layers]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cross: list[KeysValues | None] | None = None,
        cross_mask: Tensor | None = None,
        causal: bool = False,
        trace: Trace | None = None,
        cache=None,
        first_only: bool = False,
    ) -> Tensor:
        """ids [N, T] -> states [N, T, Dt], or [N, 1, Dt] with `first_only`: the last layer then skips the other tokens.

        mask: bool [N, T], false for pads; causal texts are padded on the right and need none. cross: keys and values of
        N contexts, or of B contexts that N / B consecutive texts share. cross_mask: bool [N or B, S], false for the
        context's pads. cache: a `dlip.models.generate.Cache` of the tokens before.
        """
        trace = trace or Trace()
        mask = None if mask is None or causal else mask[:, None, None]
        cross_mask = None if cross_mask is None else cross_mask[:, None, None]
        x = self.embeddings(ids, cache.length if cache else 0)
        for i, layer in enumerate(self.encoder.layer):
            kv = layer.attention.self.keys_values(x)
            if cache:
                kv = cache.extend(i, kv)
            if first_only and i == len(self.encoder.layer) - 1:
                x = x[:, :1]
            x, probs = layer.attention(x, kv, mask, causal and ids.shape[1] > 1, trace.wants("self", i))
            trace.keep("self", i, probs)
            if cross is not None and cross[i] is not None:
                x, probs = layer.crossattention(x, cross[i], cross_mask, False, trace.wants("cross", i))
                trace.keep("cross", i, probs)
            x = layer.feed_forward(x)
            trace.keep("states", i, x)
        if cache:
            cache.length += ids.shape[1]
        return x


class LMHead(nn.Module):
    """Transform, then logits over the vocabulary by the word embeddings (`tie_head`) or a matrix of its own."""

    def __init__(self, c: ModelConfig, embeddings: nn.Embedding):
        super().__init__()
        self.predictions = nn.Module()
        self.predictions.transform = nn.Module()
        self.predictions.transform.dense = Linear(c.text_width, c.text_width)
        self.predictions.transform.LayerNorm = nn.LayerNorm(c.text_width, c.text_eps)
        self.predictions.decoder = Linear(c.text_width, c.vocab_size)
        if c.tie_head:
            self.predictions.decoder.weight = embeddings.weight
        self.predictions.bias = self.predictions.decoder.bias

    def forward(self, x: Tensor) -> Tensor:
        transform = self.predictions.transform
        return self.predictions.decoder(transform.LayerNorm(transform.dense(x, gelu=True)))  # [N, T, V]


class TextDecoder(nn.Module):
    """A causal `TextEncoder` with a language-model head; tied, it has only its self-attention to itself."""

    def __init__(self, c: ModelConfig, encoder: TextEncoder):
        super().__init__()
        self.bert = TextEncoder(c)
        if c.tie_decoder:
            self.bert.embeddings = encoder.embeddings
            for own, shared in zip(self.bert.encoder.layer, encoder.encoder.layer, strict=True):
                own.intermediate, own.output = shared.intermediate, shared.output
                if hasattr(shared, "crossattention"):
                    own.crossattention = shared.crossattention
        self.cls = LMHead(c, self.bert.embeddings.word_embeddings)


# --- the whole model --------------------------------------------------------------------------------------------------


class Med(Model, nn.Module):
    """Multimodal mixture of encoder and decoder, of any width, depth and number of heads.

    If image and text widths differ, a linear bridge maps question states [.., Dt] to the width that the decoder's
    cross-attention reads [.., Di].
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.vision_model = ImageEncoder(c)
        self.text_encoder = TextEncoder(c)
        self.text_decoder = TextDecoder(c, self.text_encoder)
        self.vision_proj = Linear(c.image_width, c.embed_dim)
        self.text_proj = Linear(c.text_width, c.embed_dim)
        self.itm_head = Linear(c.text_width, 2)
        equal = c.image_width == c.text_width
        self.question_bridge = nn.Identity() if equal else Linear(c.text_width, c.image_width)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("image_mean", torch.tensor(c.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(c.image_std).view(1, 3, 1, 1), persistent=False)
        backbone = self.vision_model.embeddings.backbone
        own_init = set(backbone.modules()) if backbone else ()
        self.apply(lambda module: module in own_init or init_weights(module))

    def normalize(self, images: Tensor) -> Tensor:
        """Resize and normalize images, uint8 [B, 3, H, W] of any size -> float [B, 3, S, S]."""
        return normalized(images, self.config.image_size, self.image_mean, self.image_std).to(self.temp.dtype)

    def pixels_of(self, batch: Batch) -> Tensor:
        """What `encode_image` reads: normalized pixels [B, 3, S, S], or precomputed features [B, P, C]."""
        return self.normalize(batch.images) if batch.features is None else batch.features.to(self.temp.dtype)

    def encode_image(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        return self.vision_model(pixels, trace)  # [B, P+1, Di]

    def encode_text(self, ids: Tensor, mask: Tensor, trace: Trace | None = None, first_only: bool = False) -> Tensor:
        if first_only:
            ids, mask = trim(ids, mask)
        return self.text_encoder(ids, mask, trace=trace, first_only=first_only)  # [N, T, Dt], or [N, 1, Dt]

    def project_image(self, states: Tensor) -> Tensor:
        return F.normalize(self.vision_proj(states[:, 0]).float(), dim=-1)  # [B, E]

    def project_text(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_proj(states[:, 0]).float(), dim=-1)  # [N, E]

    def fuse(self, ids: Tensor, mask: Tensor, image_states: Tensor, rows: Tensor | None = None, trace=None) -> Tensor:
        """Read texts [N, T] together with images `image_states[rows]` -> [N, T, Dt]."""
        return self.fuse_with(self.text_encoder.cross(image_states), ids, mask, rows, trace)

    def fuse_with(
        self, cross: list, ids: Tensor, mask: Tensor | None, rows: Tensor | None = None, trace=None,
        first_only: bool = False,
    ) -> Tensor:  # fmt: skip
        """Like `fuse`, with precomputed keys and values of the images (`TextEncoder.cross`).

        mask: None if no text is padded. rows: int64 [N], each text's image; one image may serve all texts. `first_only`
        gives [N, 1, Dt], all that matching reads.
        """
        if rows is not None:
            # index_select, as the gradients of kv[rows] are summed in random order by several threads
            cross = [kv and (kv[0].index_select(0, rows), kv[1].index_select(0, rows)) for kv in cross]
        ids = first_token(ids, self.config.enc_id)
        return self.text_encoder(ids, mask, cross, trace=trace, first_only=first_only)

    def match_logits(self, fused: Tensor) -> Tensor:
        return self.itm_head(fused[:, 0])  # [N, 2], index 1 is a match

    def question_states(self, fused: Tensor) -> Tensor:
        return self.question_bridge(fused)  # [N, Q, Di]

    def decode(self, ids: Tensor, context: Tensor, context_mask: Tensor | None = None, trace=None) -> Tensor:
        """Logits of each next token [N, T, V], for right-padded ids [N, T] and context [N, S, Di]."""
        cross = self.text_decoder.bert.cross(context)
        return self.text_decoder.cls(self._decode(ids, cross, context_mask, trace))

    def caption_log_likelihood(self, ids: Tensor, mask: Tensor, cross: list) -> Tensor:
        """log p(caption | image), fp32 [N], of captions [N, T] after the prompt; cross: the decoder's, of the image."""
        ids, _, labels = with_prompt(ids, mask, self.config.prompt_ids)
        logits = self.text_decoder.cls(self._decode(ids, cross, None, None))
        return -F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1)

    def _decode(self, ids: Tensor, cross: list, cross_mask: Tensor | None, trace: Trace | None) -> Tensor:
        ids = first_token(ids, self.config.dec_id)
        return self.text_decoder.bert(ids, None, cross, cross_mask, causal=True, trace=trace)  # [N, T, D]

    def features(
        self, batch: Batch, want: Want, pairs: tuple[Tensor, Tensor] | None = None, image: Tensor | None = None
    ) -> Features:
        batch = self.tokenized(batch)
        abilities, traces = want.abilities, {source: Trace(want.layers_of(source, self.config)) for source in SOURCES}
        out = Features(traces=traces, mask=batch.caption_mask, image_id=batch.image_id, temp=self.temp)
        if image is None and (abilities or any(map(want.includes, ("image", "fusion", "decoder")))):
            image = self.encode_image(self.pixels_of(batch), traces["image"])
        if want.includes("text") or ("itm" in abilities and pairs is None):
            text = self.encode_text(batch.ids, batch.mask, traces["text"])
            if abilities & {"itc", "itm"}:
                out.contrast(self.project_image(image), self.project_text(text))
        cross = self.text_encoder.cross(image) if want.includes("fusion") or "vqa" in abilities else None
        if want.includes("fusion"):
            ids, mask, rows = batch.ids, batch.mask, None
            if "itm" in abilities:
                rows, texts = out.choose_pairs(pairs)
                ids, mask = distributed.all_gather(ids)[texts], distributed.all_gather(mask)[texts]
            fused = self.fuse_with(cross, ids, mask, rows, traces["fusion"])
            if "itm" in abilities:
                out.logits["itm"] = self.match_logits(fused)  # [N, 2]
        if want.includes("decoder"):
            tied = self.config.tie_decoder and cross is not None
            decoder_cross = cross if tied else self.text_decoder.bert.cross(image)
            ids, decoder_mask, out.labels["lm"] = with_prompt(batch.ids, batch.mask, self.config.prompt_ids)
            out.decoder_mask = decoder_mask & batch.captioned[:, None]
            states = self._decode(ids, decoder_cross, None, traces["decoder"])
            if "lm" in abilities:
                out.logits["lm"] = self.text_decoder.cls(states)  # [B, T, V]
        if "vqa" in abilities:
            fused = self.fuse_with(cross, batch.question_ids, batch.question_mask, batch.question_rows)
            question = self.question_states(fused)
            out.logits["vqa"] = self.decode(batch.answer_ids, question, batch.question_mask)  # [N, A, V]
            out.labels["vqa"] = next_tokens(batch.answer_ids, batch.answer_mask)
        return out


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights (std 0.02) and zero biases, as BLIP has them."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
