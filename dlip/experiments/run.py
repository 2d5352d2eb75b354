"""Run an experiment: make or load its models, train, measure, and write its record."""

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dlip import data as data_sets
from dlip.checkpoints.init_from import check_backbone, initialize
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.common.files import write_json
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.texts import warn_of_lost_texts
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.config import ExperimentConfig
from dlip.experiments.history import history, models_of
from dlip.experiments.measure import held_out, measure, note_skipped
from dlip.experiments.quick_eval import QuickEvaluation, measurable_tasks
from dlip.experiments.trackers import Reporter, check_installed
from dlip.models.config import ModelConfig, preset
from dlip.models.med import Med
from dlip.records import contains, record_of_run
from dlip.records.write import append, new_record, samples
from dlip.training.config import CACHE, CACHE_GB, TrainConfig
from dlip.training.dry_run import budget
from dlip.training.loop import check_fit, train
from dlip.training.run_folder import Run
from dlip.training.weights import trained_abilities
from dlip.vlm import VLM

VOCABULARY_SIZE = 5000
"""Maximum size of a vocabulary that is trained on the training texts."""
VOCABULARY_IMAGES = 20_000
"""Maximum number of images, of each of joined datasets, whose texts a vocabulary is trained on."""
FROM_TEACHER = ("enc_id", "prompt_ids", "image_mean", "image_std", "max_positions")
"""Fields of a student's ModelConfig that are its teacher's."""


# --- models and data by name ------------------------------------------------------------------------------------------


def train_tokenizer(dataset) -> Tokenizer:
    """A tokenizer trained on the texts of a data set."""
    return Tokenizer.train(dataset.texts(VOCABULARY_IMAGES), VOCABULARY_SIZE)


def new_model(size: str | ModelConfig, tokenizer: Tokenizer, seed: int, **changes) -> VLM:
    """An untrained model with the tokenizer's vocabulary; the same seed gives the same weights."""
    config = preset(size) if isinstance(size, str) else size
    own_enc = config.enc_id != config.cls_id
    ids = dict(pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dec_id=tokenizer.dec_id)
    ids["enc_id"] = tokenizer.enc_id if own_enc else tokenizer.cls_id
    torch.manual_seed(seed)
    med = Med(dataclasses.replace(config, vocab_size=len(tokenizer), **{**ids, **changes}))
    return VLM(med, tokenizer, size if isinstance(size, str) else "student")


def new_student(size: str | ModelConfig, teacher: VLM | None, seed: int, dataset=None) -> VLM:
    """An untrained student with its teacher's tokenizer, first tokens, prompt, normalization and maximum text length.

    Without a BLIP as teacher its tokenizer is trained on `dataset`. Raises UserError for a size that changes one of
    `FROM_TEACHER`.
    """
    if teacher is None or isinstance(teacher.tokenizer, StockTokenizer):
        return new_model(size, train_tokenizer(dataset), seed)
    shared = {name: getattr(teacher.med.config, name) for name in FROM_TEACHER}
    if changed := set(re.findall(r"[:,](\w+)=", size if isinstance(size, str) else "")) & set(FROM_TEACHER):
        raise UserError(f"a student's {sorted(changed)[0]} is its teacher's; leave it out of the size {size}")
    own = preset(size) if isinstance(size, str) else size
    if own.image_backbone:  # reads images as it was trained to
        shared = {name: value for name, value in shared.items() if not name.startswith("image_")}
    max_text = min(own.max_text, teacher.med.config.max_text)
    return new_model(size, teacher.tokenizer, seed, **shared, max_text=max_text)


def student_for(
    size: str | ModelConfig,
    tokenizer_model: VLM | None,
    config: TrainConfig,
    dataset=None,
    init_from: Sequence[str] = (),
) -> VLM:
    """A new student, initialized from `init_from`, with the abilities that `config` trains.

    tokenizer_model, dataset: teacher and data of `new_student`. Raises UserError where the parts do not fit.
    """
    student = new_student(size, tokenizer_model, config.seed, dataset)
    check_backbone(student.med.config, init_from, config.backbone_lr > 0)
    student.med.abilities = trained_abilities(config.weights)
    for weights in init_from:
        initialize(student, weights)
    return student


def train_split(data: str | Path) -> str:
    """The default training split of a data set."""
    return "train-small" if str(data) == "scenes" else "train"


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class PreparedRun:
    """The models and data of an experiment."""

    experiment: ExperimentConfig
    """With its splits named and epochs resolved to steps."""
    student: VLM
    """Untrained, or initialized from other weights."""
    teacher: VLM | None
    compared: VLM | None
    """What the student is compared with: the teacher, or the model whose tokenizer it has."""
    dataset: object
    test: object
    """What the trained model is evaluated on."""
    watched: object
    """What it is evaluated on during training."""
    skipped: dict[str, int]
    """Split -> number of faults that were skipped."""


def prepare(experiment: ExperimentConfig, verify: bool = True) -> PreparedRun:
    """Load or make the models and data of an experiment.

    verify: read every image once beforehand. Raises UserError where a name is unknown or parts do not fit.
    """
    config, data, held = experiment.train, experiment.data, experiment.evaluation
    data = dataclasses.replace(data, split=data.split or train_split(data.name))
    test_data = held.data or data.name
    held = dataclasses.replace(held, split=held.split or held_out(test_data))
    dataset = data_sets.open(data.name, data.split, data.limit, data.on_error)
    test = data_sets.open(test_data, held.split, held.limit, data.on_error)
    val = test
    if config.eval_every and test.split != "val" and "val" in data_sets.splits(test_data):
        val = data_sets.open(test_data, "val", config.eval_items, data.on_error)
    watched = val.first(config.eval_items)
    teacher = VLM.load(experiment.teacher) if experiment.teacher else None
    tokenizer_model = VLM.load(experiment.tokenizer) if experiment.tokenizer else teacher
    if experiment.tokenizer and isinstance(tokenizer_model.tokenizer, StockTokenizer):
        raise UserError(f"{experiment.tokenizer} is not a BLIP, so students cannot use its tokenizer; drop --tokenizer")

    def initialized() -> VLM:
        model = student_for(experiment.size, tokenizer_model, config, dataset, experiment.init_from)
        measurable_tasks(model, test)  # reads no image
        return model

    check_backbone(preset(experiment.size), experiment.init_from, config.backbone_lr > 0)
    reads_data = tokenizer_model is None or isinstance(tokenizer_model.tokenizer, StockTokenizer)
    student, skipped = None if reads_data else initialized(), Counter[str]()
    for one in {id(one): one for one in (dataset, test, val)}.values() if verify else ():
        skipped[one.split] += len(one.verify())
    student = student or initialized()
    if verify:
        warn_of_lost_texts(dataset, student.tokenizer, student.med.config.max_text)
        for measured in (test, watched) if config.eval_every else (test,):
            measurable_tasks(student, measured)
    experiment = experiment.replace(data=data, evaluation=held, train=config.for_dataset(len(dataset)))
    return PreparedRun(experiment, student, teacher, teacher or tokenizer_model, dataset, test, watched, skipped)


def preview(experiment: ExperimentConfig) -> dict:
    """What an experiment's training would cost, as `dlip.training.dry_run.budget` gives it; nothing is written.

    Raises UserError as `prepare` and `dlip.training.loop.train` do.
    """
    ready = prepare(experiment, verify=experiment.data.on_error == "skip")  # else a faulty image would stop it
    config = ready.experiment.train
    check_fit(ready.student, ready.teacher, ready.dataset, config)
    return budget(ready.student, ready.dataset, config, ready.teacher)


def run(
    experiment: ExperimentConfig,
    folder: str | Path,
    results: str | Path,
    *,
    command: str | None = None,
    progress: bool = True,
    cache: str | Path = CACHE,
    cache_gb: float = CACHE_GB,
    report_to: Sequence[str] = (),
    extra: dict | None = None,
) -> dict:
    """Train a model, measure it, append its record to `results`, and return the record.

    command: kept in the record for information; by default the one that runs the experiment. cache: where `train.cache`
    and `train.cache_features` keep outputs, at most `cache_gb` GB. report_to: trackers that get the run's log too, of
    `dlip.experiments.trackers.TRACKERS`. extra: more fields of the record. A finished run is measured without training
    again; where `results` has its record, nothing is done. Raises UserError as `prepare` and `train` do.
    """
    check_installed(report_to)
    distributed.join()
    ready = prepare(experiment)
    experiment = ready.experiment.replace(name=experiment.name or Path(folder).resolve().name)
    config, held, test, about = experiment.train, experiment.evaluation, ready.test, experiment.to_dict()
    earlier = history(models_of(about, folder))
    quick_eval = QuickEvaluation(Run(folder), ready.watched, ready.teacher, held.candidates)
    reporter = Reporter(report_to, Run(folder), ready.watched)

    def on_row(row: dict) -> None:
        reporter(row)
        if "eval" in row and progress:
            quick_eval.show()

    def write_record(done: Run) -> dict:
        if progress:
            quick_eval.show()
        existing = record_of_run(done.folder)
        if existing and same_experiment(existing, experiment) and contains(results, existing):
            warnings.warn(f"{folder} holds this run, and {results} its record; nothing is done again", stacklevel=2)
            return existing
        model, started_from = done.model(), done.config()
        metrics, items = measure(
            model,
            test,
            held.latency_repeats,
            progress,
            teacher=ready.compared,
            k=held.candidates,
            generate_limit=held.generate_limit,
        )
        note_skipped(metrics, ready.skipped)
        if steps := done.skipped_steps():
            metrics["notes"]["steps"] = f"skipped as non-finite: {steps} of {config.steps}"
        record = new_record(
            experiment.name,
            experiment.role,
            command=command or experiment.command(str(folder)),
            config={"model": started_from["model"], **about},
            seed=config.seed,
            train_images=len(ready.dataset),
            metrics=metrics,
            losses=done.losses(),
            wall_s=done.seconds(),
            device=str(model.device),
            samples=samples(items, test),
            items=items,
            evaluations=quick_eval.results(),
        )
        record |= {"history": earlier, "inputs": started_from.get("inputs", {}) | {"test": test.fingerprint()}}
        record |= extra or {}
        reporter({"step": config.steps, "test": metrics})
        write_json(done.folder / "record.json", record)
        append(record, results)  # last, so that an interrupted measurement is repeated and never appended twice
        return record

    record: dict = {}
    with closing(reporter):
        train(
            ready.student,
            ready.dataset,
            config,
            folder,
            ready.teacher,
            evaluate=quick_eval,
            about={name: value for name, value in about.items() if name != "train"},
            progress=progress,
            cache=cache,
            cache_gb=cache_gb,
            on_row=on_row,
            on_finished=lambda done: record.update(distributed.run_on_main(lambda: write_record(done))),
        )
    return record


# --- records ----------------------------------------------------------------------------------------------------------


def same_experiment(record: dict, experiment: ExperimentConfig) -> bool:
    """Whether a record is that of an experiment."""
    try:
        return ExperimentConfig.from_dict(record["config"]) == experiment
    except UserError:
        return False
