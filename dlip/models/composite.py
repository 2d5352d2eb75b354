"""One teacher made of several checkpoints."""

from dataclasses import replace

from torch import Tensor, nn

from dlip.data.batch import Batch
from dlip.models.features import Features, Trace, Want
from dlip.models.protocol import TRAINED_BY, Model, first_with
from dlip.models.tasks import SOURCES


def shared_config(models: list[Model]):
    """The configuration of a `Composite` of these models."""
    meds = [model for model in models if not model.stock]
    if not meds:
        return models[0].config
    if meds[0].tokenizer:
        meds = [med for med in meds if med.reads(meds[0].tokenizer.vocabulary)]
    writer, matcher = (first_with(TRAINED_BY[source], meds) for source in ("decoder", "fusion"))
    return replace(
        meds[0].config, prompt_ids=writer.config.prompt_ids if writer else (),
        enc_id=(matcher or meds[0]).config.enc_id, image_size=max(med.config.image_size for med in meds),
        max_text=max(med.config.max_text for med in meds),
    )  # fmt: skip


class Composite(Model, nn.Module):
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

    def features(self, batch: Batch, want: Want, pairs=None, image: None = None) -> Features:
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
            part = med.features(batch, Want(abilities, layers), pairs)
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
