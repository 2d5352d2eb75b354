"""What a model that teaches or is measured offers, whatever it is made of.

`Model` is the network: BLIP (`Med`), CLIP and SigLIP (`DualEncoder`), several checkpoints as one (`Composite`) and a
cached teacher (dlip/training) are models. `Measured` has images and texts as its users see them: a `VLM`, and the
runner of exported graphs (dlip/export). Nothing outside dlip/models and dlip/checkpoints asks which of them it has.

Shapes: B images, N texts of T tokens, P patches, widths Di (image), Dt (text) and E (shared by ITC).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from dlip.common import distributed
from dlip.common.errors import MissingAbility
from dlip.data.batch import Batch, squares
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import ImageInput
from dlip.models.features import ABILITIES, Features, Want
from dlip.models.tasks import Reranker
from dlip.models.token_ids import pad_to_longest

TRAINED_BY = {"text": ("itc",), "fusion": ("itm", "vqa"), "decoder": ("lm",)}
"""Source -> abilities that train its states, the preferred one first; image states are trained by all."""
DESCRIPTIONS = {
    "itc": "compare images with texts",
    "itm": "match texts with images",
    "lm": "write captions",
    "vqa": "answer questions",
}


class Model:
    """A network with trained weights for some abilities.

    To teach, it needs `features`, `config`, `abilities` and `tokenizer`; the rest has defaults. A published BLIP
    checkpoint was fine-tuned for one task and lacks the heads of the others: `model_for` and `model_for_states` return
    the member that was trained for an ability or a source, so that nothing is computed with untrained weights.

    Every member has `normalize` (images uint8 [B, 3, H, W]), `encode_image` (states [B, P+1, Di]), `encode_text`
    (states [N, T, Dt]), `project_image` and `project_text` (unit vectors of ITC [B, E] and [N, E]). ITM, captions and
    answers are `Med`'s alone: `fuse`, `match_logits`, `question_states` and `decode`.
    """

    abilities: frozenset[str] = frozenset(ABILITIES)
    """Of `ABILITIES`."""
    tokenizer: Tokenizer | StockTokenizer | None = None
    """None for a model that reads ids of whatever vocabulary its batches have."""
    stock: bool = False
    """Its layers are classes of `transformers`: it compares images with texts by ITC and teaches, and is neither
    trained nor saved, exported or timed."""
    steps: int = 0
    """Decoder steps that it has computed."""
    config: object
    """Sizes, under the names of `ModelConfig`."""
    temp: Tensor
    """The ITC temperature; its device and dtype are the model's."""

    def features(
        self, batch: Batch, want: Want, pairs: tuple[Tensor, Tensor] | None = None, image: Tensor | None = None
    ) -> Features:
        """Compute what `want` names: each source at most once, and only those that are needed.

        pairs: (image rows, text rows) that ITM reads, the B matching pairs first; a student mines hard negatives itself
        (None) and passes them to its teacher. image: precomputed image states [B, P+1, Di], read instead of pixels.
        """
        raise NotImplementedError

    def forward(self, *inputs, **options) -> Features:
        """`features`, as a call of a module."""
        return self.features(*inputs, **options)

    # --- one or several -----------------------------------------------------------------------------------------------

    @property
    def members(self) -> list["Model"]:
        """The models it is made of: itself, or those of a `Composite`."""
        return [self]

    def model_for(self, ability: str) -> "Model":
        """The member with an ability of `ABILITIES`. Raises MissingAbility if its weights are missing."""
        return self._first((ability,), DESCRIPTIONS[ability])

    def model_for_states(self, source: str) -> "Model":
        """The member trained to give states of a source ("image": the first). Raises MissingAbility if there is
        none."""
        if source == "image":
            return self.members[0]
        return self._first(TRAINED_BY[source], DESCRIPTIONS[TRAINED_BY[source][0]])

    def _first(self, abilities: tuple[str, ...], description: str) -> "Model":
        if model := first_with(abilities, self.members):
            return model
        able = "; ".join(DESCRIPTIONS[ability] for ability in ABILITIES if ability in self.abilities)
        raise MissingAbility(
            f"this model cannot {description}: its checkpoint has no weights for it (it can: {able}); "
            "choose another model"
        )

    # --- texts and images ---------------------------------------------------------------------------------------------

    def reads(self, vocabulary: str | None) -> bool:
        """Whether it reads token ids of a vocabulary (`Tokenizer.vocabulary`) as they are.

        If not, it tokenizes a batch's captions itself, and terms that compare tokens cannot be computed with it.
        """
        return vocabulary is None or self.tokenizer is None or self.tokenizer.vocabulary == vocabulary

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with the captions' ids in this model's vocabulary."""
        if self.reads(batch.vocabulary):
            return batch
        batch = batch.tokenized_by(self.tokenizer, self.config.max_text)
        return pad_to_longest(batch, self.tokenizer.pad_id) if distributed.batch_world_size() > 1 else batch

    def preprocess(self, images: list):
        """Images, RGB or their pixels uint8 [H, W, 3], as `encode_image` reads them."""
        return self.normalize(squares(images, self.config.image_size).to(self.temp.device))


def first_with(abilities: Iterable[str], models: Iterable[Model]) -> Model | None:
    """The first model with the first ability that any has."""
    return next((model for ability in abilities for model in models if ability in model.abilities), None)


class Measured(Protocol):
    """What `dlip.evaluate` needs of a model: a `VLM`, the runner of exported graphs, or a choice among them.

    Tensors are torch's, on any device. Raises MissingAbility, a UserError, for what it was not trained for.
    """

    name: str
    abilities: frozenset[str]
    temperature: float
    """Of ITC, whose logits are the cosines divided by it."""

    def evaluating(self) -> AbstractContextManager:
        """Evaluation happens in this context: eval and inference mode, and afterwards the model's own mode again."""

    def caption(
        self, images: list[ImageInput], num_beams: int = 3, max_new_tokens: int | None = None, batch_size: int = 8
    ) -> list[str]:
        """A caption for each image, without the prompt; by default of at most `max_text` tokens."""

    def answer(
        self, images: list[ImageInput], questions: list[str], num_beams: int = 3, batch_size: int = 8
    ) -> list[str]:
        """The answer to each image's question; equal objects among the images are encoded once."""

    def encode(self, images: list[ImageInput], reranker: Reranker | None) -> tuple[Tensor, Tensor]:
        """ITC's unit vectors [B, E] and the image states [B, P+1, Di] that `pair_logits` reads (any tensor with rows
        without a reranker)."""

    def text_ids(self, texts: list[str], reranker: Reranker | None = None) -> tuple[Tensor, Tensor]:
        """Token ids int64 [N, T] and mask bool [N, T] as ITC reads them, or as the reranker does."""

    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ITC's unit vectors [N, E] of tokenized texts."""

    def pair_logits(self, states: Tensor, ids: Tensor, mask: Tensor, reranker: Reranker) -> Tensor:
        """Logits fp32 [N, 2] of one image's states [1, P+1, Di] with N tokenized texts, index 1 is a match.

        By the decoder, [:, 1] is log p(text | image) and [:, 0] is 0.
        """
