"""Which abilities a model's weights have, and one teacher made of several checkpoints.

Each published BLIP checkpoint was fine-tuned for one task and lacks the heads of the others. `model_for` and
`model_for_states` return the model that was trained for an ability or a source, and raise `MissingAbility` if there is
none, so that nothing is ever computed with untrained weights.
"""

from dataclasses import replace

from torch import Tensor, nn

from dlip.common.errors import MissingAbility, UserError
from dlip.data.batch import Batch
from dlip.models.config import ModelConfig
from dlip.models.features import ABILITIES, SOURCES, Features, Trace, Want

TRAINED_BY = {"text": ("itc",), "fusion": ("itm", "vqa"), "decoder": ("lm",)}
"""Source -> abilities that train its states, the preferred one first; image states are trained by all."""
DESCRIPTIONS = {"itc": "compare images with texts", "itm": "match texts with images", "lm": "write captions",
                "vqa": "answer questions"}  # fmt: skip


class HasAbilities:
    """A model with trained weights for some abilities; all of them by default."""

    abilities: frozenset[str] = frozenset(ABILITIES)

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

    def _first(self, abilities: tuple[str, ...], description: str) -> "HasAbilities":
        for ability in abilities:
            for med in self.members:
                if ability in med.abilities:
                    return med
        able = "; ".join(DESCRIPTIONS[ability] for ability in ABILITIES if ability in self.abilities)
        raise MissingAbility(f"this model cannot {description}: its checkpoint has no weights for it (it can: {able}); "
                     "choose another model")  # fmt: skip


def check(model: HasAbilities, want: Want) -> None:
    """Raises MissingAbility if `want` names logits or states that the model has no weights for."""
    for ability in want.abilities:
        model.model_for(ability)
    for source, _ in want.layers:
        model.model_for_states(source)


class Composite(HasAbilities, nn.Module):
    """Several models as one: each ability comes from the first model that has it, with that model's image encoder.

    Image encoders differ, as each model was fine-tuned alone; "image" states, and a student's `hr.image`, are those of
    the first. `config` is the first model's, with the largest image size, the prompt of the model that writes captions
    and the first fusion token of the model that gives "fusion" states. Raises UserError if the text layers differ in
    size, as one student could not be compared with both.
    """

    def __init__(self, meds: list):
        super().__init__()
        self.meds = nn.ModuleList(meds)
        self.abilities = frozenset().union(*(med.abilities for med in meds))
        first = meds[0].config
        for other in (med.config for med in meds[1:]):
            for size in ("vocab_size", "text_width", "text_layers", "fusion_layers", "max_positions"):
                if getattr(first, size) != getattr(other, size):
                    raise UserError(
                        f"the checkpoints of one teacher differ in {size} ({getattr(first, size)} and "
                        f"{getattr(other, size)}); combine models with the same text layers"
                    )
        prompt_ids = self.model_for("lm").config.prompt_ids if "lm" in self.abilities else ()
        enc_id = self.model_for_states("fusion").config.enc_id if self.abilities & {"itm", "vqa"} else first.enc_id
        sizes = {name: max(getattr(med.config, name) for med in meds) for name in ("image_size", "max_text")}
        self.config: ModelConfig = replace(first, prompt_ids=prompt_ids, enc_id=enc_id, **sizes)

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
        out = Features({source: Trace() for source in SOURCES}, batch.mask, batch.image_id, self.temp, pairs=pairs)
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
