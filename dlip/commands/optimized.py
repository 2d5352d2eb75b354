"""`dlip evaluate --optimize`: the scores of a model as the fastest backends run it."""

from dataclasses import asdict

from dlip.common.errors import UserError
from dlip.evaluation import tasks
from dlip.experiments.config import EvaluationConfig, MeasureConfig
from dlip.experiments.run import note_skipped, open_verified
from dlip.export.optimize import optimize
from dlip.vlm import VLM


def evaluate_optimized(config: EvaluationConfig, results: str | None = None, progress: bool = True) -> dict:
    """Metrics with "items", and under "optimized" every candidate of `optimize`, the fastest at one caption first.

    Raises UserError for options that only `evaluate_model` has, and as `optimize` does.
    """
    others = {"answers": config.answers, "bounds": config.bounds, "precision": config.precision != "fp32"}
    others |= {"latency-repeats": config.measure.latency_repeats != MeasureConfig.latency_repeats}
    if refused := [name for name, given in (others | {"results": results}).items() if given]:
        raise UserError(f"--optimize and --{refused[0]} exclude each other")
    tasks.check_tasks(config.tasks)
    vlm, how = VLM.load(config.model), config.measure
    dataset, skipped = open_verified(config.data)
    model, candidates = optimize(vlm)
    metrics = tasks.evaluate(
        model, dataset, tasks=config.tasks, k=how.candidates, num_beams=config.beams, return_items=True,
        generate_limit=how.generate_limit, progress=progress,
    )  # fmt: skip
    note_skipped(metrics, skipped)
    return metrics | {"optimized": [asdict(candidate) for candidate in candidates]}
