"""Attribution of a score to pixels: integrated gradients and occlusion by Captum, and Grad-CAM of cross-attention.

Each function takes a `Score` and an image and returns a map [S, S] over the model's square input, positive where a
pixel raises the score. `progress` is called with the fraction done, 0 to 1, after each batch; an exception that it
raises stops the work.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from torch import Tensor

from dlip.common.errors import UserError
from dlip.data.transforms import ImageInput
from dlip.evaluation.attention_maps import word_weights
from dlip.models.features import Trace
from dlip.models.token_ids import with_prompt
from dlip.vlm import VLM

Progress = Callable[[float], object]
BATCH_IMAGES = 16


class Score:
    """The score that is explained: a model's score of an image with a text.

    word: None for the log-odds that text and image match (ITM before its softmax); else an index into `text.split()`,
    for the decoder's log-probability of that word after the words before it. Raises UserError for a word that the model
    does not read, or if there is none.
    """

    def __init__(self, vlm: VLM, text: str, word: int | None = None):
        self.vlm, self.word = vlm, word
        self.med = vlm.med.model_for("itm" if word is None else "lm").eval()
        self.ids, self.mask = vlm.tokenize([text], self.med)  # [1, T]
        pool = word_weights(vlm, [text], self.med)[0].to(vlm.device)
        self.pool, known = pool, pool.sum(1) > 0  # [W, T], [W]
        if not known.any():
            raise UserError("the text has no word that the model reads; give one")
        if word is not None and not (0 <= word < len(known) and known[word]):
            raise UserError(f"there is no word {word} among those that the model reads; count from 0")

    def pixels(self, image: ImageInput) -> Tensor:
        """Normalized pixels [1, 3, S, S]. Raises UserError for an unreadable image."""
        return self.vlm.pixels([image], self.med)

    def __call__(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        """Scores [N] of normalized pixels [N, 3, S, S]."""
        med, states = self.med, self.med.encode_image(pixels)
        ids, mask = (x.expand(len(pixels), -1) for x in (self.ids, self.mask))
        if self.word is None:
            no, yes = med.match_logits(med.fuse(ids, mask, states, trace=trace)).float().unbind(-1)
            return yes - no
        ids, _, _ = with_prompt(ids, mask, med.config.prompt_ids)
        tokens = self.pool[self.word].nonzero().squeeze(1) + len(med.config.prompt_ids)
        logits = med.decode(ids, states, trace=trace)[:, tokens - 1].float()  # [N, tokens of the word, V]
        return logits.log_softmax(-1).gather(-1, ids[:, tokens, None]).sum((1, 2))


def integrated_gradients(score: Score, image: ImageInput, steps: int = 50, progress: Progress | None = None) -> Tensor:
    """Map [S, S] whose sum is the image's score minus that of an image of the data's mean color.

    Source: Sundararajan et al. (arXiv 1703.01365).
    """
    method = IntegratedGradients(_with_progress(score, steps, progress))
    pixels = score.pixels(image).requires_grad_()
    return method.attribute(pixels, n_steps=steps, internal_batch_size=BATCH_IMAGES)[0].sum(0).detach().cpu()


def occlusion(
    score: Score,
    image: ImageInput,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Map [S, S] of the drop in score when a square of the data's mean color hides a pixel, mean over squares.

    window, stride: size and step of the squares, in pixels of the model's input; by default a patch and half of one.
    Source: Zeiler and Fergus (arXiv 1311.2901).
    """
    patch, pixels = score.med.config.patch_size, score.pixels(image)
    window, stride = window or patch, stride or max(1, patch // 2)
    places = (-(-(pixels.shape[-1] - window) // stride) + 1) ** 2
    method = Occlusion(_with_progress(score, places + 1, progress))
    with torch.no_grad():
        drops = method.attribute(
            pixels, (3, window, window), strides=(3, stride, stride), perturbations_per_eval=BATCH_IMAGES
        )  # equal in all three channels
    return drops[0, 0].cpu()


@torch.enable_grad()
def grad_cam(score: Score, image: ImageInput, progress: Progress | None = None) -> Tensor:
    """Map [S, S], non-negative: cross-attention times the positive part of the score's gradient, mean over heads.

    The attention is that of the explained word, or for a match score of the first token, which ITM reads, in the last
    layer that has it. Source: ALBEF (arXiv 2107.07651) and its code; after Selvaraju et al. (arXiv 1610.02391).
    """
    c, source = score.med.config, "fusion" if score.word is None else "decoder"
    trace = Trace.of(c, source, "cross")
    pixels = score.pixels(image).requires_grad_()  # or a frozen model's maps would have no gradient
    value = _with_progress(score, 1, progress)(pixels, trace)
    probs = trace.get("cross")  # [1, H, T, 1+P]
    (gradient,) = torch.autograd.grad(value.sum(), probs)
    cam = (probs * gradient.clamp(min=0)).mean(1)[0].detach().float()  # [T, 1+P]
    if score.word is None:
        cam = cam[0]
    else:  # a word's map is that of the step that generates it
        cam = score.pool[score.word] @ cam[len(c.prompt_ids) :].roll(1, 0)
    on_patches = cam[1:].view(1, 1, c.grid, c.grid)
    return F.interpolate(on_patches, (c.image_size, c.image_size), mode="bilinear", align_corners=False)[0, 0].cpu()


METHODS = {"integrated gradients": integrated_gradients, "occlusion": occlusion, "Grad-CAM": grad_cam}
"""Name -> method of a score and an image."""


def _with_progress(score: Score, total: int, progress: Progress | None) -> Callable[..., Tensor]:
    """The score as a function that reports the fraction of `total` images it has seen."""
    seen = 0

    def call(pixels: Tensor, *rest) -> Tensor:
        nonlocal seen
        values = score(pixels, *rest)
        seen += len(pixels)
        if progress:
            progress(min(1.0, seen / total))
        return values

    return call
