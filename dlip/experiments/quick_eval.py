"""Quick evaluations of a student while it trains."""

from contextlib import suppress

from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.evaluation.evaluate import evaluate
from dlip.models.tasks import TASKS
from dlip.records.evaluations import evaluations
from dlip.reports.learning import learning_lines
from dlip.training.run_folder import Run
from dlip.vlm import VLM


def measurable_tasks(vlm: VLM, dataset) -> tuple[str, ...]:
    """The tasks that the model can be evaluated at on the data. Raises UserError where there is none."""
    if dataset.is_stream:
        raise UserError(f"{dataset.name} is a stream, which can only be trained on; name other --test-data")
    tasks = tuple(
        name for name, task in TASKS.items() if task.abilities[0] in vlm.med.abilities and task.data in dataset.fields
    )
    if not tasks:
        raise UserError(
            f"no trained task can be evaluated on {plural(len(dataset), 'image')} of {dataset.name} "
            f"{dataset.split}; give a weight to itc, lm or vqa, or name other --test-data or more --eval-items"
        )
    return tasks


SAMPLES = 4
"""Captions that a quick evaluation keeps, of the first images."""


class QuickEvaluation:
    """Evaluate the student of a run during training, and its teacher once; captions without the metrics of Java.

    candidates: `k` of `dlip.evaluate`.
    """

    def __init__(self, run: Run, dataset, teacher: VLM | None, candidates: int | None = None):
        self.run, self.dataset, self.teacher, self.candidates = run, dataset, teacher, candidates
        self.printed = 0

    def __call__(self, student: VLM) -> dict:
        """The student's metrics, with some of its captions as "samples"; the first of a run have its teacher's as
        "teacher"."""
        tasks = measurable_tasks(student, self.dataset)
        metrics = self._evaluate(student, tasks)
        if self.teacher and not any("teacher" in row.get("eval", {}) for row in self.run.rows()):
            with suppress(UserError):  # it was trained for none of the student's tasks
                metrics["teacher"] = self._evaluate(self.teacher, tasks)
        return metrics

    def _evaluate(self, vlm: VLM, tasks: tuple[str, ...]) -> dict:
        metrics = evaluate(
            vlm, self.dataset, tasks=tasks, k=self.candidates, java=False, return_items=True, progress=False
        )
        captions = metrics.pop("items").get("captioning", [])[:SAMPLES]
        samples = [{"image_id": row["image_id"], "caption": row["caption"]} for row in captions]
        return metrics | ({"samples": samples} if samples else {})

    def results(self) -> dict | None:
        """All evaluations of the run so far, as its record keeps them."""
        return evaluations(self.run.rows(), len(self.dataset))

    def show(self) -> None:
        """Print the evaluations that were not printed yet, those before the run was resumed among them."""
        lines = learning_lines(self.results())
        if new := lines[self.printed :]:
            with tqdm.external_write_mode():
                print(*new, sep="\n", flush=True)
        self.printed = len(lines)
