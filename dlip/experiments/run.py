"""An experiment from its names to its record: make or load the models, train, measure, write down."""

import dataclasses
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from dlip import data as data_sets
from dlip.checkpoints.init_from import initialize
from dlip.common.distributed import run_on_main
from dlip.common.errors import UserError
from dlip.common.files import write_json
from dlip.common.text import plural
from dlip.cost.count import summary
from dlip.cost.latency import compare_latency
from dlip.cost.memory import memory
from dlip.data.tokenizer import Tokenizer
from dlip.evaluation import attention_maps
from dlip.evaluation.tasks import evaluate
from dlip.experiments.config import LATENCY_REPEATS
from dlip.experiments.history import given, history, made
from dlip.models.composite import TRAINED_BY
from dlip.models.config import ModelConfig, preset
from dlip.models.fast.precision import precision
from dlip.models.med import Med
from dlip.models.tasks import TASKS
from dlip.records import contains, record_of_run
from dlip.records.write import append, new_record
from dlip.training.config import CACHE, CACHE_GB, TrainConfig
from dlip.training.dry_run import budget
from dlip.training.loop import check_fit, train
from dlip.training.run_folder import Run, weights_hash
from dlip.training.terms import AT, HR, VLP, learnt
from dlip.vlm import VLM

VOCABULARY = 8192
"""Most pieces of a vocabulary that is made from the training texts."""
TEXTS_READ = 20_000
"""Pictures whose texts a vocabulary is made from."""


def texts_of(dataset) -> Iterable[str]:
    """Captions, questions and answers, of at most the first `TEXTS_READ` pictures, of joined sets of each."""
    for part in [dataset] if isinstance(dataset, data_sets.FirstN) else getattr(dataset, "datasets", [dataset]):
        if hasattr(type(part), "texts"):  # no picture need be opened
            yield from part.texts(TEXTS_READ)
            continue
        for i in range(min(TEXTS_READ, len(part))):
            item = part[i]
            yield from item.captions
            for question in item.questions:
                yield from (question.text, *question.answers)


def new_model(size: str | ModelConfig, tokenizer: Tokenizer, seed: int, **changes) -> VLM:
    """An untrained model over the tokenizer's vocabulary; the same seed gives the same weights."""
    config = preset(size) if isinstance(size, str) else size
    own_enc = config.enc_id != config.cls_id
    ids = dict(pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, dec_id=tokenizer.dec_id)
    ids["enc_id"] = tokenizer.enc_id if own_enc else tokenizer.cls_id
    torch.manual_seed(seed)
    med = Med(dataclasses.replace(config, vocab_size=len(tokenizer), **ids, **changes))
    return VLM(med, tokenizer, size if isinstance(size, str) else "student")


SHARED = ("enc_id", "prompt_ids", "image_mean", "image_std", "max_positions")
"""What of a student's configuration is its teacher's."""


def new_student(size: str | ModelConfig, teacher: VLM, seed: int) -> VLM:
    """An untrained student that reads what its teacher reads: vocabulary, first tokens, prompt, normalisation, and no
    longer texts. Raises UserError for a size that says otherwise."""
    theirs = teacher.med.config
    shared = {name: getattr(theirs, name) for name in SHARED}
    if typed := set(re.findall(r"[:,](\w+)=", size if isinstance(size, str) else "")) & set(SHARED):
        raise UserError(f"a student's {sorted(typed)[0]} is its teacher's; leave it out of the size {size}")
    student = new_model(size, teacher.tokenizer, seed)
    shared |= {"max_text": min(student.med.config.max_text, theirs.max_text)}
    torch.manual_seed(seed)
    return VLM(Med(dataclasses.replace(student.med.config, **shared)), teacher.tokenizer, student.name)


def train_split(name: str | Path) -> str:
    """The split that a student learns from where none is named."""
    return "train-small" if str(name) == "scenes" else "train"


def distill(teacher, student, data, config: TrainConfig, folder: str | Path = "runs/student") -> Run:
    """Distils `student` from `teacher` on `data` and returns the run.

    teacher: a VLM or its name. student: a VLM, a size's name or a ModelConfig. data: a data set or its name. To weights
    that a configuration has by default those of hr and at are added, as in the command `dlip distill`, which, unlike
    this, also measures the student and leaves a record. Raises UserError where they do not fit together.
    """
    if config.weights == VLP:
        config = config.replace(weights=VLP | HR | AT)
    teacher = VLM.load(teacher) if isinstance(teacher, str | Path) else teacher
    if not isinstance(student, VLM):
        student = new_student(student, teacher, config.seed)
        student.med.abilities = learnt(config.weights)
    data = data_sets.open(data, train_split(data)) if isinstance(data, str | Path) else data
    return train(student, data, config, folder, teacher)


def measure(
    vlm: VLM,
    dataset,
    latency_repeats: int = LATENCY_REPEATS,
    progress: bool = True,
    teacher: VLM | None = None,
    **options,
) -> tuple[dict, dict]:
    """The model's figures on `dataset` with "efficiency" among them, and what it said ("items").

    On scenes with "attention" too. Where latency is timed, memory is measured beside it. Attention and latency are
    compared with those of `teacher` where one is given: of the latency, timed by turns, "share" is the percentage of
    the teacher's. Where there is an accelerator the models are moved there, but for int8, which only a CPU reads.
    """
    models = [model for model in (vlm, teacher) if model]
    fast = torch.accelerator.is_available() and all(precision(model.med) != "int8" for model in models)
    for model in models:
        model.med.to(torch.accelerator.current_accelerator() if fast else "cpu")
    figures = evaluate(vlm, dataset, return_items=True, progress=progress, **options)
    items = figures.pop("items")
    if hasattr(dataset, "scene") and looks(vlm):
        figures["attention"] = attention_maps.measure(
            vlm, dataset, teacher=teacher if teacher and looks(teacher) else None
        )
    figures["efficiency"] = summary(vlm.med)
    if latency_repeats:
        timed = "captioning" if "lm" in vlm.med.abilities else "vqa" if "vqa" in vlm.med.abilities else "retrieval"
        pair = {"teacher": teacher} if teacher and TASKS[timed].abilities[-1] in teacher.med.abilities else {}
        try:
            found = compare_latency({**pair, "model": vlm}, timed, latency_repeats)
            share = {"share": 100 / found["speedup"]["model"]} if pair else {}
            figures["efficiency"]["latency"] = found["models"]["model"] | share
            figures["efficiency"]["memory"] = memory(vlm, timed)
        except UserError as reason:  # it has not learnt the task, or reads too few tokens
            figures["notes"]["latency"] = str(reason)
    return figures, items


def scored(vlm: VLM, dataset) -> list[str]:
    """The tasks that the model can be measured at on the data. Raises UserError where there is none."""
    found = [
        name
        for name, task in TASKS.items()
        if task.abilities[0] in vlm.med.abilities and data_sets.has_field(dataset, task.data)
    ]
    if not found:
        raise UserError(
            f"nothing that is to be learnt can be measured on {plural(len(dataset), 'picture')} of {dataset.name} "
            f"{dataset.split}; give a weight to itc, lm or vqa, or name other --test-data or more --eval-items"
        )
    return found


def looks(vlm: VLM) -> bool:
    """Whether a model has weights for both attentions that are scored, fusion's and the decoder's."""
    return all(vlm.med.abilities & set(TRAINED_BY[source]) for source in attention_maps.SOURCES)


@dataclass
class Material:
    """What an experiment begins with."""

    student: VLM
    """Untrained, or at the weights where it starts."""
    teacher: VLM | None
    kin: VLM | None
    """The teacher, or the model whose vocabulary the student reads."""
    dataset: object
    test: object
    """What the model is measured on."""
    watched: object
    """What it is glanced at on while it is trained."""
    config: TrainConfig
    about: dict
    """Where they come from."""
    left_out: dict[str, int]
    """Split -> faults that are left out of it."""


def prepare(
    *,
    size: str,
    teacher: str | None,
    tokenizer: str | None,
    start: list[str],
    data: str,
    split: str | None,
    limit: int | None,
    on_error: str,
    config: TrainConfig,
    epochs: float | None = None,
    test_data: str | None = None,
    test_split: str | None = None,
    test_limit: int | None = None,
    verify: bool = True,
) -> Material:
    """From names to models and data.

    teacher: whose student it is, if any. tokenizer: a model whose vocabulary it reads; else that of the training texts.
    start: what its weights begin at, each as `dlip.checkpoints.init_from.initialize` reads it. epochs: how often each
    picture is seen, which
    decides the configuration's steps. test_data, test_split, test_limit: what the model is measured on, by default the
    `held_out` split of the data. verify: whether every picture is read once beforehand. Raises UserError where there is
    no such thing or they do not fit.
    """
    split = split or train_split(data)
    dataset = data_sets.open(data, split, limit, on_error)
    test = data_sets.open(test_data or data, test_split or held_out(test_data or data), test_limit, on_error)
    seen = test if test.split == "val" or not config.eval_every else watched(test_data or data, test, on_error)
    glanced = data_sets.FirstN(seen, config.eval_items)
    vlm = VLM.load(teacher) if teacher else None
    kin = vlm or (VLM.load(tokenizer) if tokenizer else None)

    def begun() -> VLM:
        model = new_student(size, kin, config.seed) if kin else new_model(size, vocabulary(dataset), config.seed)
        model.med.abilities = learnt(config.weights)
        for source in start:
            initialize(model, source)
        scored(model, test.dataset if isinstance(test, data_sets.FirstN) else test)  # as counted, no picture read
        return model

    preset(size)  # what cannot be is told before every picture is read, which a vocabulary waits for
    model, left_out = begun() if kin else None, dict[str, int]()
    for one in {id(one): one for one in (dataset, test, seen)}.values() if verify else ():
        left_out[one.split] = left_out.get(one.split, 0) + len(data_sets.verify(one))
    model = model or begun()
    if verify:
        for measured in (test, glanced) if config.eval_every else (test,):
            scored(model, measured)
    if epochs is not None:
        if not 0 < epochs < 1e9:
            raise UserError(f"{epochs:g} epochs cannot be trained; give a positive number")
        config = config.replace(steps=max(1, round(epochs * (len(dataset) // config.batch_size))))
    about = {"size": size, "teacher": teacher, "tokenizer": tokenizer, "start": start}
    about["data"] = {"name": dataset.name, "split": split, "pictures": len(dataset), "on_error": on_error}
    return Material(model, vlm, kin, dataset, test, glanced, config, about, left_out)


def watched(data: str | Path, test, on_error: str):
    """What a model is glanced at on while it is trained: val where there is one, else `test`."""
    return data_sets.open(data, "val", on_error=on_error) if "val" in data_sets.splits(data) else test


def preview(**asked) -> dict:
    """What training with the arguments of `prepare` would cost, as `dlip.training.dry_run.budget` gives it; nothing
    is written.

    Raises UserError as `prepare` and `dlip.training.loop.train` do.
    """
    got = prepare(**asked, verify=False)
    check_fit(got.student, got.teacher, got.dataset, got.config)
    return budget(got.student, got.dataset, got.config, got.teacher)


def run(
    *,
    name: str | None,
    data: str,
    folder: str | Path,
    results: str | Path,
    command: str,
    role: str,
    progress: bool = True,
    cache: str | Path = CACHE,
    cache_gb: float = CACHE_GB,
    candidates: int | None = None,
    latency_repeats: int = LATENCY_REPEATS,
    extra: dict | None = None,
    **asked,
) -> dict:
    """Trains a model, measures it and appends its record to `results`; returns the record.

    asked: what else `prepare` takes. cache: where `config.cache` keeps the teacher's outputs, `cache_gb` GB at most.
    candidates: that retrieval re-ranks, as `dlip.evaluation.tasks.retrieval.predict` takes them.
    latency_repeats: how often latency is timed, 0 for not at all. extra: fields that the record gets besides.
    A folder that holds a finished run is measured without training again, and one that this command has measured into
    `results` is left as it is. Raises UserError as `train` does.
    """
    got = prepare(data=data, **asked)
    config, kin, test, earlier = got.config, got.kin, got.test, history(given(got.about, folder))

    def glance(student: VLM) -> dict:
        tasks = scored(student, got.watched)  # captioning is slow: it is glanced at where there is nothing else
        quick = [task for task in tasks if task != "captioning"]
        return evaluate(student, got.watched, tasks=tuple(quick or tasks), progress=False)

    def write_down(done: Run) -> dict:
        kept = record_of_run(done.folder)
        if kept and kept["command"] == command and contains(results, kept):
            warnings.warn(f"{folder} holds this run, and {results} its record; nothing is done again", stacklevel=2)
            return kept
        model, settings = done.model(), done.config()
        inputs = settings.pop("inputs", {})  # the weights begun with are another seed's, and no configuration
        figures, items = measure(model, test, latency_repeats, progress, teacher=kin, k=candidates)
        if any(got.left_out.values()):
            figures.setdefault("notes", {})["data"] = left_out_text(got.left_out)
        if steps := done.skipped_steps():
            figures.setdefault("notes", {})["steps"] = f"skipped as non-finite: {steps} of {config.steps}"
        record = new_record(
            name or Path(folder).resolve().name, role, command=command, config=settings, seed=config.seed,
            train_images=len(got.dataset), metrics=figures, losses=done.losses(), wall_s=done.seconds(),
            device=str(model.device), samples=samples(items, test), items=items,
        )  # fmt: skip
        record |= {"history": earlier, "inputs": inputs | {"test": test.fingerprint()}}
        record |= extra or {}
        write_json(done.folder / "record.json", record)
        append(record, results)  # last: what is stopped before is measured and appended again, and never twice
        return record

    kept: dict = {}
    train(
        got.student, got.dataset, config, folder, got.teacher, glance, got.about, progress, cache, cache_gb,
        lambda done: kept.update(run_on_main(lambda: write_down(done))),
    )  # fmt: skip
    return kept


def again(model: str, vlm: VLM, command: str, figures: dict, items: dict, dataset) -> dict:
    """The record of a trained model, by name and loaded, that `command` has measured once more: how it was made is in
    its history.

    figures, items: of `measure`. Raises UserError as `made` does.
    """
    first = made(model)
    about = {key: first[key] for key in ("name", "role", "config", "seed", "train_images", "losses", "wall_s")}
    about |= {"device": str(vlm.device), "samples": samples(items, dataset)}
    record = new_record(command=command, metrics=figures, items=items, **about)
    record["inputs"] = {"model": weights_hash(vlm), "test": dataset.fingerprint()}
    training = {key: first[key] for key in ("command", "config", "wall_s")}
    return record | {"history": [*first.get("history", []), {"folder": model, **training}]}


def left_out_text(faults: dict[str, int]) -> str:
    """`faults left out: 2 of train, 1 of val`, of split -> faults."""
    counts = [f"{count} of {split}" for split, count in faults.items() if count]
    return f"faults left out: {', '.join(counts)}"


def held_out(data: str, options: str = "--test-") -> str:
    """The split that a model is measured on where none is named: test, or where there is none val.

    options: how those begin that name others. Raises UserError where there is neither.
    """
    there = data_sets.splits(data)
    if split := next((split for split in ("test", "val") if split in there), None):
        return split
    raise UserError(
        f"{data} has neither a test nor a val split to measure the model on, only {', '.join(there)}; name one with "
        f"{options}split, or other data with {options}data"
    )


def vocabulary(dataset) -> Tokenizer:
    return Tokenizer.train(texts_of(dataset), VOCABULARY)


def samples(items: dict, dataset, count: int = 12) -> list[dict]:
    """What the model said of the first pictures, beside the truth: of answers the annotators' commonest."""
    out = []
    captions = {row["image_id"]: row["caption"] for row in items.get("captioning", [])}
    answers: dict[int, list[dict]] = {}
    for row in items.get("vqa", []):
        answers.setdefault(row["image_id"], []).append(row)
    for i in range(min(count, len(dataset))):
        item = dataset[i]
        rows = answers.get(item.image_id, [])
        out.append({
            "image_id": item.image_id,
            "caption": captions.get(item.image_id),
            "references": item.captions,
            "questions": [question.text for question in item.questions],
            "answers": [row["answer"] for row in rows],
            "truth": [max(question.answers, key=question.answers.count) for question in item.questions],
        })  # fmt: skip
    return out
