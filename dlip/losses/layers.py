"""What hidden states (hr) and attention maps (at) share: pairs of layers that are compared."""

from dlip.losses.term import Setup, Term
from dlip.models.features import Want

LAST_LAYERS = ((-1, -1),)
"""Pairs (teacher layer, student layer) that the paper compares."""


class LayerTerm(Term):
    """A mean over pairs of layers of one source, by default the last ones.

    Raises UserError for a layer that a model does not have, and MissingAbility where the teacher has no weights for
    the source.
    """

    distills = True
    kind: str
    """Of what is compared: states, self or cross."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.pairs = setup.config.layers.get(self.source, LAST_LAYERS)
        self.wants("student").layers_of(self.source, setup.student.config)
        self.wants("teacher").layers_of(self.source, self.owner(setup.teacher).config)

    def wants(self, side: str) -> Want:
        layers = tuple(pair[side == "student"] for pair in self.pairs)
        return Want(layers={(self.source, self.kind): layers})
