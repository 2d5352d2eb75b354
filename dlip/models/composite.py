"""Which abilities a model's weights have, and one teacher made of several checkpoints.

Each published BLIP checkpoint was fine-tuned for one task and lacks the heads of the others. `model_for` and
`model_for_states` return the model that was trained for an ability or a source, and raise `MissingAbility` if there is
none, so that nothing is ever computed with untrained weights.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from dlip.common import distributed
from dlip.common.errors import MissingAbility
from dlip.data.batch import Batch, squares
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig
from dlip.models.features import ABILITIES, Features, Trace, Want
from dlip.models.tasks import SOURCES
from dlip.models.token_ids import pad_to_longest

TRAINED_BY = {"text": ("itc",), "fusion": ("itm", "vqa"), "decoder": ("lm",)}
"""Source -> abilities that train its states, the preferred one first; image states are trained by all."""
DESCRIPTIONS = {"itc": "compare images with texts", "itm": "match texts with images", "lm": "write captions",
                "vqa": "answer questions"}  # fmt: skip


class HasAbilities:
    """A model with trained weights for some abilities; all of them by default."""

    abilities: frozenset[str] = frozenset(ABILITIES)
    tokenizer: Tokenizer | StockTokenizer | None = None
    """Its tokenizer, which may be another than the VLM's."""
    own_tokens: bool = False
    """Whether its vocabulary is another than that of the batches it gets, so that it tokenizes captions itself."""

    @property
    def members(self) -> list["HasAbilities"]:
        return [self]

    def model_for(self, ability: str) -> "HasAbilities":
        """The model with an ability of `ABILITIES`. Raises MissingAbility if its weights are missing."""
        return self._first((ability,), DESCRIPTIONS[ability])

    def model_for_states(self, source: str) -> "HasAbilities":
        """The model trained to give states of a source ("image": the first). Raises MissingAbility if there is none."""
        if source == "image":
            return self.members[0]
        return self._first(TRAINED_BY[source], DESCRIPTIONS[TRAINED_BY[source][0]])

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with the captions' ids in this model's vocabulary."""
        if not self.own_tokens:
            return batch
        batch = batch.tokenized_by(self.tokenizer, self.config.max_text)
        return pad_to_longest(batch, self.tokenizer.pad_id) if distributed.batch_world_size() > 1 else batch

    def preprocess(self, images: list):
        """Images, RGB or their pixels [H, W, 3], as `encode_image` reads them."""
        return self.normalize(squares(images, self.config.image_size).to(self.temp.device))

    def _first(self, abilities: tuple[str, ...], description: str) -> "HasAbilities":
        if med := first_with(abilities, self.members):
            return med
        able = "; ".join(DESCRIPTIONS[ability] for ability in ABILITIES if ability in self.abilities)
        raise MissingAbility(f"this model cannot {description}: its checkpoint has no weights for it (it can: {able}); "
                     "choose another model")  # fmt: skip


def first_with(abilities: Iterable[str], models: Iterable[HasAbilities]) -> HasAbilities | None:
    """The first model with the first ability that any has."""
    return next((model for ability in abilities for model in models if ability in model.abilities), None)


def shared_config(models: list[HasAbilities]):
    """The configuration of a `Composite` of these models."""
    meds = [model for model in models if isinstance(model.config, ModelConfig) and not model.own_tokens]
    if not meds:
        return models[0].config
    writer, matcher = (first_with(TRAINED_BY[source], meds) for source in ("decoder", "fusion"))
    return replace(
        meds[0].config, prompt_ids=writer.config.prompt_ids if writer else (),
        enc_id=(matcher or meds[0]).config.enc_id, image_size=max(med.config.image_size for med in meds),
        max_text=max(med.config.max_text for med in meds),
    )  # fmt: skip


class Composite(HasAbilities, nn.Module):
    """Several models as one: each ability comes from the first model that has it, with that model's image encoder.

    Image encoders differ, as each model was fine-tuned alone; "image" states, and a student's `hr.image`, are those of
    the first. `config` is that of the first MED. Of the MEDs that share its vocabulary it has the largest image size
    and text length, the prompt of the one that writes captions, and the first fusion token of the one that gives
    "fusion" states.
    """

    def __init__(self, meds: list):
        super().__init__()
        self.meds = nn.ModuleList(meds)
        self.abilities = frozenset().union(*(med.abilities for med in meds))
        self.config = shared_config(meds)

    @property
    def members(self) -> list:
        return list(self.meds)

    @property
    def temp(self) -> Tensor:
        return (self.model_for("itc") if "itc" in self.abilities else self.meds[0]).temp

    def forward(self, batch: Batch, want: Want, pairs=None, image: None = None) -> Features:
        """What `want` names, each part from the model trained for it. `image` must be None: image states differ."""
        if image is not None:
            raise ValueError("a composite has several image encoders; it cannot read precomputed image states")
        out = Features(
            {source: Trace() for source in SOURCES}, batch.caption_mask, batch.image_id, self.temp, pairs=pairs
        )
        for med in self.meds:
            abilities = frozenset(ability for ability in want.abilities if self.model_for(ability) is med)
            layers = {key: kept for key, kept in want.layers.items() if self.model_for_states(key[0]) is med}
            if not abilities and not layers:
                continue
            part = med(batch, Want(abilities, layers), pairs)
            out.traces |= {source: part.traces[source] for source, _ in layers}
            out.logits |= {ability: part.logits[ability] for ability in abilities}
            out.labels |= {ability: part.labels[ability] for ability in abilities & part.labels.keys()}
            if part.decoder_mask is not None:
                out.decoder_mask = part.decoder_mask
            if "itm" in abilities:
                out.pairs = part.pairs
            if "itc" in abilities:
                out.image_embed, out.text_embed, out.rows = part.image_embed, part.text_embed, part.rows
        return out
