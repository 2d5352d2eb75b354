"""CLIP, SigLIP and SigLIP 2 of stock `transformers` as models with one ability, ITC, called like `Med`.

Layers, weights, tokenizer and image processor are the stock ones; this file names what they compute as `Features` does.
Shapes: B images, N texts of T tokens, P patches, widths Di (image), Dt (text) and E (shared by ITC).
Sources: Radford et al., CLIP (arXiv 2103.00020); Zhai et al., SigLIP (arXiv 2303.15343); Tschannen et al., SigLIP 2
(arXiv 2502.14786).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dlip.common.errors import MissingAbility, UserError
from dlip.data.batch import Batch
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.transforms import as_pil
from dlip.models.features import Features, Trace, Want
from dlip.models.grid_resize import normalized
from dlip.models.protocol import Model
from dlip.models.tasks import SOURCES

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

RESAMPLING = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class DualEncoderConfig:
    """Sizes of a dual encoder, under the names of `ModelConfig`."""

    image_backbone: ClassVar[str] = ""
    """There is none."""
    image_size: int
    """Side of the square that is read in training, in px."""
    patch_size: int
    image_width: int
    image_heads: int
    image_layers: int
    image_mlp: int
    text_width: int
    text_heads: int
    text_layers: int
    text_mlp: int
    embed_dim: int
    max_text: int
    """Longest text, in tokens; longer ones are truncated."""
    class_token: bool
    """Whether a class token is read with the patches; else the patches are pooled."""
    resized_positions: int = 0
    """Positions that are resized to the image's patches by a matrix product, as in SigLIP 2."""
    fusion_layers: tuple[int, ...] = ()
    """There are none."""

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size


class DualEncoder(Model, nn.Module):
    """An image encoder and a text encoder that meet in ITC alone.

    States are those of the last layer, image states [B, 1+P, Di] normalized by the final layer norm, as those of `Med`:
    a token for the whole image (CLIP's class token, SigLIP's pooled patches), then the patches. Text states are the
    pooled token's alone, [N, 1, Dt]: the end of the text of CLIP, the last token, padding or not, of SigLIP.

    A family defines `embed_dim` (E); `image_states` of the stock image encoder's output; `pooled_token`, int64 [N], the
    position whose state stands for a text; and `image_head` and `text_head`, which map pooled states into the shared
    space.

    ITC logits are the cosines divided by `temp`, which is 1 / exp(logit_scale). SigLIP's own logits also have a bias,
    the same for all pairs, which places the threshold of their sigmoid. A softmax over candidates, as in kd.itc, does
    not depend on it: it is ignored.
    """

    abilities = frozenset({"itc"})
    stock = True
    class_token = False

    def __init__(self, model: "PreTrainedModel", tokenizer: StockTokenizer, image_processor: "BaseImageProcessor"):
        super().__init__()
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        vision, text = model.config.vision_config, model.config.text_config
        self.config = DualEncoderConfig(
            image_size=self.square_size(),
            patch_size=vision.patch_size,
            image_width=vision.hidden_size,
            image_heads=vision.num_attention_heads,
            image_layers=vision.num_hidden_layers,
            image_mlp=vision.intermediate_size,
            text_width=text.hidden_size,
            text_heads=text.num_attention_heads,
            text_layers=text.num_hidden_layers,
            text_mlp=text.intermediate_size,
            embed_dim=self.embed_dim(),
            max_text=min(text.max_position_embeddings, tokenizer.stock.model_max_length),
            class_token=self.class_token,
            resized_positions=getattr(vision, "num_patches", 0),
        )
        for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
            values = getattr(image_processor, name) if image_processor.do_normalize else [neutral] * 3
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        side = self.config.image_size
        blank, read = Image.new("RGB", (side, side)), self.normalize(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        rows, expected = (x["pixel_values"].shape[-1] for x in (self.preprocess([blank]), read))
        if rows != expected or not math.isclose(image_processor.rescale_factor, 1 / 255, rel_tol=1e-3):
            raise UserError(
                f"its image processor gives rows of {rows} values, scaled by {image_processor.rescale_factor}, but its "
                f"model reads {expected}, scaled by 1/255; copy its own"
            )

    @property
    def temp(self) -> Tensor:
        """The ITC temperature."""
        return (-self.model.logit_scale.detach()).exp().reshape(())

    def square_size(self) -> int:
        """Side of the squares that are read in training, in px."""
        return self.model.config.vision_config.image_size

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the stock image encoder reads, of normalized squares [B, 3, S, S]."""
        return {"pixel_values": pixels}

    def normalize(self, images: Tensor) -> dict[str, Tensor]:
        """What the image encoder reads, of images uint8 [B, 3, H, W], resized to squares: a student sees the same."""
        mode = RESAMPLING.get(self.image_processor.resample, "bicubic")
        pixels = normalized(images, self.config.image_size, self.image_mean, self.image_std, mode)
        return self.inputs(pixels.to(self.temp.dtype))

    def preprocess(self, images: list) -> dict[str, Tensor]:
        """What the image encoder reads, of RGB images or their pixels [H, W, 3], by the stock image processor."""
        inputs = self.image_processor([as_pil(image) for image in images], return_tensors="pt").to(self.temp.device)
        return {**inputs, "pixel_values": inputs["pixel_values"].to(self.temp.dtype)}

    def encode_image(self, pixels: dict[str, Tensor], trace: Trace | None = None) -> Tensor:
        """Image states [B, 1+P, Di]."""
        states = self.image_states(self.model.vision_model(**pixels))
        self._keep(trace, states, self.config.image_layers)
        return states

    def encode_text(self, ids: Tensor, mask: Tensor, trace: Trace | None = None, first_only: bool = False) -> Tensor:
        """Text states [N, 1, Dt]."""
        attended = mask.long() if self.tokenizer.masks_padding else None
        out = self.model.text_model(input_ids=ids, attention_mask=attended).last_hidden_state
        states = out[torch.arange(len(ids), device=ids.device), self.pooled_token(ids)][:, None]
        self._keep(trace, states, self.config.text_layers)
        return states

    def _keep(self, trace: Trace | None, states: Tensor, layers: int) -> None:
        """Raise MissingAbility where `trace` wants more than the states of the last layer."""
        trace = trace or Trace()
        if trace.wanted.keys() - {"states"} or {*trace.wanted.get("states", {}).values()} - {layers - 1}:
            raise MissingAbility(
                "a CLIP or SigLIP has only the states of its last layer, and no attention maps; choose a BLIP"
            )
        trace.keep("states", layers - 1, states)

    def project_image(self, states: Tensor) -> Tensor:
        return F.normalize(self.image_head(states[:, 0]).float(), dim=-1)  # [B, E]

    def project_text(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_head(states[:, 0]).float(), dim=-1)  # [N, E]

    def reads(self, vocabulary: str | None) -> bool:
        return False

    def features(self, batch: Batch, want: Want, pairs=None, image: None = None) -> Features:
        """Compute what `want` names of images, captions and ITC.

        pairs and image: not read, as there is no ITM, and outputs of a model with its own tokens are not cached.
        """
        batch = self.tokenized(batch)
        traces = {source: Trace(want.layers_of(source, self.config)) for source in SOURCES}
        out = Features(traces=traces, mask=batch.caption_mask, image_id=batch.image_id, temp=self.temp)
        if want.abilities or want.includes("image"):
            image_states = self.encode_image(self.normalize(batch.images), traces["image"])
        if want.includes("text"):
            text_states = self.encode_text(batch.ids, batch.mask, traces["text"])
            if "itc" in want.abilities:
                out.contrast(self.project_image(image_states), self.project_text(text_states))
        return out


class Clip(DualEncoder):
    """`CLIPModel`."""

    class_token = True

    def embed_dim(self) -> int:
        return self.model.config.projection_dim

    def image_states(self, out) -> Tensor:
        return self.model.vision_model.post_layernorm(out.last_hidden_state)  # the stock class does so for the first

    def pooled_token(self, ids: Tensor) -> Tensor:
        end = self.model.text_model.eos_token_id
        # 2 stands in older configurations, whose end of text is the highest id
        return ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)

    def image_head(self, states: Tensor) -> Tensor:
        return self.model.visual_projection(states)

    def text_head(self, states: Tensor) -> Tensor:
        return self.model.text_projection(states)


class Siglip(DualEncoder):
    """`SiglipModel`: SigLIP, and SigLIP 2 at a fixed size."""

    def embed_dim(self) -> int:
        vision, text = self.model.config.vision_config, self.model.config.text_config
        if not vision.vision_use_head or text.projection_size != vision.hidden_size:
            raise UserError("its images and texts have no vectors of one width to compare; use a whole SigLIP")
        return vision.hidden_size

    def image_states(self, out) -> Tensor:
        return torch.cat([out.pooler_output[:, None], out.last_hidden_state], 1)

    def pooled_token(self, ids: Tensor) -> Tensor:
        return torch.full_like(ids[:, 0], ids.shape[1] - 1)

    def image_head(self, states: Tensor) -> Tensor:
        return states

    def text_head(self, states: Tensor) -> Tensor:
        return self.model.text_model.head(states)


class Siglip2(Siglip):
    """`Siglip2Model`, which reads images of any aspect ratio as patches (NaFlex); in training, squares."""

    def square_size(self) -> int:
        return math.isqrt(self.image_processor.max_num_patches) * self.model.config.vision_config.patch_size

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        side, patch = self.config.grid, self.config.patch_size
        grid = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # [B, 3, rows, p, columns, p]
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, P, p * p * 3]
        shapes = torch.tensor([[side, side]], device=pixels.device).expand(len(pixels), -1)
        mask = torch.ones_like(patches[..., 0], dtype=torch.int32)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


FAMILIES = {"clip": Clip, "siglip": Siglip, "siglip2": Siglip2}
"""`model_type` of stock `transformers` -> class."""
