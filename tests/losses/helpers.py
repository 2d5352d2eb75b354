"""Terms between a student and a teacher without a learner."""

from functools import reduce
from operator import or_
from types import SimpleNamespace

from torch import Tensor, nn

from dlip.losses import At, Setup
from dlip.models.config import ModelConfig
from dlip.models.features import Features, Want
from dlip.models.protocol import Model
from dlip.training.config import TrainConfig
from dlip.training.learner import make_terms


class Pair(nn.Module):
    """The terms with a teacher of some weights. options: fields of TrainConfig."""

    def __init__(self, student: ModelConfig, teacher: Model, weights: dict, layers=None, vocabulary=None, **options):
        super().__init__()
        config = TrainConfig(weights=weights, layers=layers or {}, **options)
        setup = Setup(SimpleNamespace(config=student), teacher, config, vocabulary=vocabulary)
        self.by_name = make_terms(setup, distilling=True)
        self.terms = nn.ModuleList(self.by_name.values())

    def want(self, side: str) -> Want:
        return reduce(or_, (term.wants(side) for term in self.terms))

    def forward(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        at = At(student, teacher, batch=None, model=None, epoch=0.0)
        return {name: term(at) for name, term in self.by_name.items()}
