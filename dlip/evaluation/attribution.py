"""Which pixels a score comes from, by Captum: integrated gradients and occlusion; and Grad-CAM of cross-attention.

Each takes a `Score` and a picture and returns a map [S, S] over the square that the model reads, to be stretched over
the picture: positive where a pixel raises the score. `progress` is called with the share done, 0 to 1, after each
batch; what it raises stops the work and reaches the caller.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from torch import Tensor

from dlip.common.errors import UserError
from dlip.evaluation.attention_maps import pieces
from dlip.models.features import Trace, Want
from dlip.models.token_ids import with_prompt
from dlip.vlm import VLM, ImageInput

Progress = Callable[[float], object]
ROWS = 16
"""Pictures that are scored at once."""


class Score:
    """What is explained: a number that a model gives to a picture beside a text.

    word: None for the log-odds that the text matches the picture (ITM before its softmax), else the place of a word in
    `text.split()`, for the log-probability that the decoder says it after the words before it. Raises UserError where
    the model reads no such word.
    """

    def __init__(self, vlm: VLM, text: str, word: int | None = None):
        self.vlm, self.word = vlm, word
        self.med = vlm.med.model_for("itm" if word is None else "lm").eval()
        self.ids, self.mask = vlm.texts([text])  # [1, T]
        pool = pieces(vlm, [text])[0].to(vlm.device)
        self.pool = pool[pool.sum(1) > 0]  # [W, T]
        for asked in [0] if word is None else [word]:
            self.check(asked)

    def check(self, word: int) -> None:
        """Raises UserError where the model reads no such word."""
        if not 0 <= word < len(self.pool):
            raise UserError(f"there is no word {word} in the {len(self.pool)} that the model reads; count from 0")

    def pixels(self, image: ImageInput) -> Tensor:
        """[1, 3, S, S] as the model reads it. Raises UserError where the picture cannot be read."""
        return self.med.normalize(self.vlm.pixels([image], self.med).to(self.vlm.device))

    def __call__(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> scores [N]."""
        med, states = self.med, self.med.encode_image(pixels)
        ids, mask = (x.expand(len(pixels), -1) for x in (self.ids, self.mask))
        if self.word is None:
            no, yes = med.match_logits(med.fuse(ids, mask, states, trace=trace)).float().unbind(-1)
            return yes - no
        ids, _ = with_prompt(ids, mask, med.config.prompt_ids)
        said = self.pool[self.word].nonzero().squeeze(1) + len(med.config.prompt_ids)
        logits = med.decode(ids, states, trace=trace)[:, said - 1].float()  # [N, pieces of the word, V]
        return logits.log_softmax(-1).gather(-1, ids[:, said, None]).sum((1, 2))


def integrated_gradients(score: Score, image: ImageInput, steps: int = 50, progress: Progress | None = None) -> Tensor:
    """[S, S], which add up to the picture's score less that of a plain picture in the data's mean colour.

    Source: Sundararajan et al. (arXiv 1703.01365).
    """
    method = IntegratedGradients(_counted(score, steps, progress))
    pixels = score.pixels(image).requires_grad_()
    return method.attribute(pixels, n_steps=steps, internal_batch_size=ROWS)[0].sum(0).detach().cpu()


def occlusion(
    score: Score,
    image: ImageInput,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """[S, S]: how much the score falls when a square in the data's mean colour hides a pixel, the mean over squares.

    window, stride: of the squares, in px of the model's picture; by default a patch, moved by half of one.
    Source: Zeiler and Fergus (arXiv 1311.2901).
    """
    patch, pixels = score.med.config.patch_size, score.pixels(image)
    window, stride = window or patch, stride or max(1, patch // 2)
    places = (-(-(pixels.shape[-1] - window) // stride) + 1) ** 2
    method = Occlusion(_counted(score, places + 1, progress))
    with torch.no_grad():
        found = method.attribute(
            pixels, (3, window, window), strides=(3, stride, stride), perturbations_per_eval=ROWS
        )  # the same of all three colours
    return found[0, 0].cpu()


@torch.enable_grad()
def grad_cam(
    score: Score,
    image: ImageInput,
    through: int | None = None,
    layer: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """[S, S], none negative: cross-attention times the positive part of the score's gradient to it, mean over heads.

    through: of a match, the word whose attention is taken; by default that of the first token, which ITM reads. A word
    that is said has its own. layer: as in `WordMaps.map`; by default the last one that the score depends on, which for
    `through` lies before the last text layer. Source: Li et al., ALBEF (arXiv 2107.07651), with its published code, as
    in BLIP's; after Selvaraju et al. (arXiv 1610.02391). Raises UserError where there is no such word or layer.
    """
    c, source = score.med.config, "fusion" if score.word is None else "decoder"
    query = torch.eye(len(score.ids[0]), device=score.ids.device)[0]  # [T]
    if score.word is not None:
        query = score.pool[score.word]
    elif through is not None:
        score.check(through)
        query = score.pool[through]
    layers = [i for i in c.fusion_layers if query[0] or source == "decoder" or i < c.text_layers - 1]
    layer = (layers or [-1])[-1] if layer is None else layer
    trace = Trace(Want(layers={(source, "cross"): (layer,)}).layers_of(source, c))
    if trace.wanted["cross"][layer] not in layers:
        raise UserError("the match does not depend on words' attention in the last text layer; choose another layer")
    pixels = score.pixels(image).requires_grad_()  # or a frozen model's maps would have no gradient
    value = _counted(score, 1, progress)(pixels, trace)
    probs = trace.get("cross", layer)  # [1, H, T, 1+P]
    (slope,) = torch.autograd.grad(value.sum(), probs)
    cam = (probs * slope.clamp(min=0)).mean(1)[0].detach()  # [T, 1+P]
    if source == "decoder":  # a word's map is that of the step that says it
        cam = cam[len(c.prompt_ids) :].roll(1, 0)
    over = (query @ cam)[1:].view(1, 1, c.grid, c.grid)
    return F.interpolate(over, (c.image_size, c.image_size), mode="bilinear", align_corners=False)[0, 0].cpu()


def _counted(score: Score, total: int, progress: Progress | None) -> Callable[..., Tensor]:
    """The score, which says how many of `total` pictures it has seen."""
    seen = 0

    def call(pixels: Tensor, *rest) -> Tensor:
        nonlocal seen
        values = score(pixels, *rest)
        seen += len(pixels)
        if progress:
            progress(min(1.0, seen / total))
        return values

    return call
