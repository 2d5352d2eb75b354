"""What a model's weights are for, and one teacher made of several checkpoints.

Each published BLIP checkpoint was fine-tuned for one task and lacks the heads of the others. `model_for` and
`model_for_states` return the model that was trained for an ability or a source, and raise `MissingAbility` where there
is none, so that nothing is ever computed with untrained weights.
"""

from dataclasses import replace

from torch import Tensor, nn

from dlip.common.errors import MissingAbility, UserError
from dlip.data.batch import Batch
from dlip.models.config import ModelConfig
from dlip.models.features import ABILITIES, SOURCES, Features, Trace, Want

SEES = {"text": ("itc",), "fusion": ("itm", "vqa"), "decoder": ("lm",)}
"""Source -> tasks that teach a model what its states are to be, the first being the one that counts; of images all."""
WORDS = {"itc": "compare pictures with texts", "itm": "match texts with pictures", "lm": "write captions",
         "vqa": "answer questions"}  # fmt: skip


class HasAbilities:
    """A model that knows which tasks its weights are for; all of them where nothing else is said."""

    abilities: frozenset[str] = frozenset(ABILITIES)

    @property
    def members(self) -> list["HasAbilities"]:
        return [self]

    def model_for(self, task: str) -> "HasAbilities":
        """The model that does a task of `ABILITIES`. Raises MissingAbility where its weights are missing."""
        return self._first((task,), WORDS[task])

    def model_for_states(self, source: str) -> "HasAbilities":
        """The model trained to give states of a source ("image": the first). Raises MissingAbility if there is none."""
        if source == "image":
            return self.members[0]
        return self._first(SEES[source], WORDS[SEES[source][0]])

    def _first(self, tasks: tuple[str, ...], words: str) -> "HasAbilities":
        for task in tasks:
            for med in self.members:
                if task in med.abilities:
                    return med
        can = "; ".join(WORDS[task] for task in ABILITIES if task in self.abilities)
        raise MissingAbility(
            f"this model cannot {words}, its checkpoint has no weights for it (it can: {can}); name another"
        )


def check(model: HasAbilities, want: Want) -> None:
    """Raises MissingAbility where `want` names logits or states that the model has no weights for."""
    for task in want.abilities:
        model.model_for(task)
    for source, _ in want.layers:
        model.model_for_states(source)


class Composite(HasAbilities, nn.Module):
    """Several models as one: each task is done by the first of them that can, with that model's own image encoder.

    They were fine-tuned apart, so that their image encoders differ. "image" is seen by the first of all, and the
    student's hr.image compares with that encoder alone; "text" is seen by the model that does ITC, "fusion" by the one
    that does ITM (or answers, where none does), "decoder" by the one that writes captions. `config` is the first
    model's, with the largest picture, the captions' prompt and the first token of fusion taken from whose they are.
    Raises UserError where the text layers differ in size, which one student's terms could not be compared with.
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
                        f"{getattr(other, size)}); compose it of models with the same text layers"
                    )
        speaks = self.model_for("lm").config.prompt_ids if "lm" in self.abilities else ()
        fuses = self.model_for_states("fusion").config.enc_id if self.abilities & {"itm", "vqa"} else first.enc_id
        sizes = {name: max(getattr(med.config, name) for med in meds) for name in ("image_size", "max_text")}
        self.config: ModelConfig = replace(first, prompt_ids=speaks, enc_id=fuses, **sizes)

    @property
    def members(self) -> list:
        return list(self.meds)

    @property
    def temp(self) -> Tensor:
        return (self.model_for("itc") if "itc" in self.abilities else self.meds[0]).temp

    def forward(self, batch: Batch, want: Want, pairs=None, image: None = None) -> Features:
        """What `want` names, each part from whose it is, as one model's; `image` must be None: there is not one."""
        if image is not None:
            raise ValueError("a composite has several image encoders; it cannot go on from one picture's states")
        out = Features({source: Trace() for source in SOURCES}, batch.mask, batch.image_id, self.temp, pairs=pairs)
        for med in self.meds:
            tasks = frozenset(task for task in want.abilities if self.model_for(task) is med)
            layers = {key: kept for key, kept in want.layers.items() if self.model_for_states(key[0]) is med}
            if not tasks and not layers:
                continue
            found = med(batch, Want(tasks, layers), pairs)
            out.traces |= {source: found.traces[source] for source, _ in layers}
            out.logits |= {task: found.logits[task] for task in tasks}
            out.labels |= {task: found.labels[task] for task in tasks & found.labels.keys()}
            if found.decoder_mask is not None:
                out.decoder_mask = found.decoder_mask
            if "itm" in tasks:
                out.pairs = found.pairs
            if "itc" in tasks:
                out.image_embed, out.text_embed, out.rows = found.image_embed, found.text_embed, found.rows
        return out
