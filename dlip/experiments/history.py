"""The runs that a model comes from: its initial weights', its teacher's, its tokenizer's."""

from collections.abc import Iterable
from pathlib import Path

from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import local_path, parse_name, split_names
from dlip.common.errors import UserError
from dlip.experiments.config import EvaluationConfig
from dlip.models.config import ModelConfig
from dlip.records.reading import count_test_images, read, record_of_model
from dlip.training.run_folder import Run
from dlip.vlm import VLM


def model_record(model: str | Path) -> dict | None:
    """The record of the run that made a model, by its name; see `dlip.records.reading.record_of_model`."""
    parsed = parse_name(str(model))
    return record_of_model(local_path(parsed.name), parsed.size)


def made_elsewhere(model: str, vlm: VLM) -> dict:
    """What is known of a model without a record: its name and size. It counts as a teacher."""
    config = vlm.med.config.to_dict() if isinstance(vlm.med.config, ModelConfig) else None
    about = {"name": model, "role": "teacher", "command": None, "config": {"model": config}, "seed": 0}
    return about | {"train_images": 0, "losses": {}, "wall_s": 0.0}


def teacher_record(record: dict, results: str | Path) -> dict | None:
    """The latest record of a run's teacher, measured as the run was, in `results` or beside the teacher, if any.

    record: of a distilled student.
    """

    name, weights = record["config"]["teacher"], record["inputs"].get("teacher")  # older runs did not keep it
    defaults = EvaluationConfig(name).to_dict()

    def measured(one: dict) -> tuple:
        how = defaults | (one.get("evaluation") or {"measure": one["config"].get("evaluation") or {}})
        measure = how["measure"].get("candidates"), how["measure"].get("generate_limit")
        conditions = *measure, how["rerank"], how["beams"], len(how["tasks"]), how["precision"]
        return one["data"], one["split"], count_test_images(one), *conditions

    evaluated = [one for one in read(results) if weights and (one.get("inputs") or {}).get("model") == weights]
    own = None if parse_name(name).size else model_record(name)  # its record is of the model's own image size
    teachers = [one for one in (own, *evaluated) if one and one["role"] == "teacher"]
    return next((one for one in reversed(teachers) if measured(one) == measured(record)), None)


def history(models: Iterable[str], after: tuple[Path, ...] = ()) -> list[dict]:
    """The runs among models by name, and those that these come from, the earliest first.

    Each is {"folder", "command" (null where it was not kept), "config", "wall_s" (of training)}. after: run folders
    that come later, one of which may have replaced an earlier one.
    """
    runs: dict[Path, dict] = {}
    for name in models:
        folder = Path(parse_name(parse_source(name)[1]).name)
        if folder in after or not (folder / "run.json").is_file():
            continue
        run = Run(folder)
        config = run.config()
        command = (model_record(folder) or {}).get("command")
        runs |= {Path(one["folder"]): one for one in history(models_of(config, folder), (*after, folder))}
        about = {"folder": str(folder), "command": command, "config": config, "wall_s": round(run.seconds(), 1)}
        runs[folder] = about
    return list(runs.values())


def models_of(config: dict, folder: str | Path) -> list[str]:
    """Names of the models that a run used: its teachers, tokenizer source, and initial weights.

    Raises UserError where the configuration in `folder` does not name them.
    """
    init_from, names = config.get("init_from") or [], [config.get(key) or "" for key in ("teacher", "tokenizer")]
    if not isinstance(init_from, list | tuple) or not all(isinstance(one, str) for one in (*init_from, *names)):
        raise UserError(f"{Path(folder) / 'run.json'} does not say what the run started from; take another copy of it")
    return [*(part for name in filter(None, names) for part in split_names(name)), *init_from]
