"""`dlip.train` and `dlip.distill`: train a student in one call, and look at what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dlip import data as data_sets
from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.dataset import DataSet
from dlip.evaluation.evaluate import evaluate
from dlip.experiments.measure import held_out
from dlip.experiments.run import student_for, train_split
from dlip.models.config import ModelConfig
from dlip.training import loop, run_folder
from dlip.training import weights as terms
from dlip.training.config import TrainConfig
from dlip.vlm import VLM

if TYPE_CHECKING:
    import plotly.graph_objects as go

Data = str | Path | DataSet | Sequence[Example]
Weights = str | Mapping[str, float]


class Run:
    """A finished training: `student`, and the `folder` that `dlip app`, `dlip evaluate` and `dlip export` take."""

    def __init__(self, folder: Path, student: VLM, data: str | None):
        """data: name of the training data, whose held-out split `evaluate` takes by default."""
        self.folder, self.student, self.data = folder, student, data

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def log(self) -> pd.DataFrame:
        """The log of training, one row per logged step: step, epoch, lr, norm, seconds, each loss term, total."""
        rows = [row for row in run_folder.Run(self.folder).rows() if "losses" in row]
        return pd.DataFrame([{**row, **row["losses"]} for row in rows]).drop(columns="losses", errors="ignore")

    def plot(self) -> "go.Figure":
        """The losses over the steps, one panel per group of terms."""
        from dlip.plots import term_curves

        return term_curves(run_folder.Run(self.folder).losses())

    def evaluate(self, data: Data | None = None, split: str | None = None, **options) -> dict:
        """The student's metrics, as `dlip.evaluate` returns them; by default on the held-out split of its data.

        options: others of `dlip.evaluate`. Raises UserError where the data have no name and none are passed.
        """
        data = data or self.data
        if data is None:
            raise UserError("the student was not trained on data with a name; pass data to evaluate it on")
        if isinstance(data, str | Path):
            split = split or held_out(str(data), "")
        return evaluate(self.student, data, split or "test", **options)

    def push_to_hub(self, repo: str, license: str | None = None) -> str:
        """Upload the student as `repo`-fp32, which `dlip.load` reads; return that name.

        Raises UserError where the upload fails.
        """
        from dlip.export.transformers import push, to_dlip

        folders, _ = to_dlip(str(self.folder), self.folder / "export", license=license)
        return push(folders, repo)[0]


def train(
    student: str | ModelConfig | VLM,
    data: Data = "scenes",
    *,
    folder: str | Path = "runs/student",
    weights: Weights = "vlp",
    split: str | None = None,
    limit: int | None = None,
    init_from: str | Sequence[str] = (),
    tokenizer: str | VLM | None = None,
    **options,
) -> Run:
    """Train a model without a teacher, and return its run. An interrupted run resumes when called again.

    student: a size such as "scenes-student" (`dlip models` lists them), or a model. data: a data set, its name, or a
    list of `dlip.data.Example`. weights: of loss terms or groups, as "vlp,hr=5" or {"vlp": 1, "hr": 5}. split, limit:
    of data with a name; the first `limit` images. init_from: models to initialize from, as "image=scenes/teacher".
    tokenizer: model whose tokenizer to use; by default one trained on the texts. options: fields of `TrainConfig`,
    such as steps, lr, batch_size, seed.

    Raises UserError for an unknown option or name, and where the parts do not fit.
    """
    return _train(None, student, data, folder, weights, split, limit, init_from, tokenizer, options)


def distill(
    teacher: str | Path | VLM,
    student: str | ModelConfig | VLM,
    data: Data = "scenes",
    *,
    folder: str | Path = "runs/student",
    weights: Weights = "vlp,hr,at",
    split: str | None = None,
    limit: int | None = None,
    init_from: str | Sequence[str] = (),
    tokenizer: str | VLM | None = None,
    **options,
) -> Run:
    """Distill a student from a teacher, and return its run; arguments as `train`.

    teacher: a model or the name of one: BLIP, CLIP, SigLIP, or several joined by +. tokenizer: by default the
    teacher's, if that is a BLIP.
    """
    teacher = VLM.load(teacher) if isinstance(teacher, str | Path) else teacher
    return _train(teacher, student, data, folder, weights, split, limit, init_from, tokenizer, options)


def _train(
    teacher: VLM | None,
    student: str | ModelConfig | VLM,
    data: Data,
    folder: str | Path,
    weights: Weights,
    split: str | None,
    limit: int | None,
    init_from: str | Sequence[str],
    tokenizer: str | VLM | None,
    options: dict,
) -> Run:
    known = [field.name for field in fields(TrainConfig)]
    if unknown := [name for name in options if name not in known]:
        near = get_close_matches(unknown[0], known, 1)
        raise UserError(
            f"there is no option {unknown[0]!r}; "
            + (f"{near[0]} is" if near else f"there are {', '.join(sorted(known))}")
        )
    if not isinstance(weights, str):
        weights = ",".join(f"{name}={weight!r}" for name, weight in weights.items())
    config = TrainConfig(weights=terms.weights(weights), **options)
    name = str(data) if isinstance(data, str | Path) else None
    dataset = data_sets.as_dataset(data, split or (train_split(name) if name else "train"))
    dataset = dataset if limit is None else dataset.first(limit)
    tokenizer = VLM.load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    sources = [init_from] if isinstance(init_from, str) else list(init_from)
    if isinstance(student, VLM):
        student.med.abilities |= terms.abilities(config.weights)
    else:
        student = student_for(student, tokenizer or teacher, config, dataset, sources)
    about = {"teacher": teacher and teacher.name, "init_from": sources}
    loop.train(student, dataset, config, folder, teacher, about=about)
    student.name = str(folder)
    return Run(Path(folder), student, name)
