"""One loop for every model: a teacher alone, a student alone, a student under its teacher."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, set_seed
from tqdm import tqdm

from dlip.checkpoints.tensors import load_weights, weights
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data import has_field
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler, explain_killed_worker, raise_faults, train_loader
from dlip.models.composite import check
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import warn_if_emulated
from dlip.models.med import ImageLayer
from dlip.training.config import CACHE, CACHE_GB, TrainConfig
from dlip.training.distillation import Distiller, Teacher
from dlip.training.layer_modes import run_layers
from dlip.training.learner import Learner
from dlip.training.optimizer import Descent
from dlip.training.run_folder import Run, made_of
from dlip.training.teacher_cache import TeacherCache
from dlip.training.terms import NEEDS
from dlip.vlm import VLM


def sharded(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher with its weights spread over all processes, layers of the image encoder apart, the rest together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for layer in [module for module in teacher.modules() if isinstance(module, ImageLayer)]:
        fully_shard(layer, mesh=mesh)
    single = {parameter for parameter in teacher.parameters() if not parameter.ndim}
    return fully_shard(teacher, mesh=mesh, reshard_after_forward=True, ignored_params=single).to(device)


def guard(teacher: VLM, config: TrainConfig, accelerator: Accelerator) -> Teacher:
    """The teacher of a run: on the device, or over all processes where it is sharded."""
    if config.shard_teacher and accelerator.num_processes > 1:
        return sharded(Teacher(copy.deepcopy(teacher.med)), accelerator.device)
    return Teacher(teacher.med.to(accelerator.device))


def check_fit(student: VLM, teacher: VLM | None, dataset, config: TrainConfig) -> None:
    """Raises UserError where the terms with weight, the models and the data do not go together, or one is packed."""
    for model in filter(None, (student, teacher)):
        refuse_packed(model.med)
    distils = [term for term, weight in config.weights.items() if weight and "." in term]
    if bool(distils) != (teacher is not None):
        raise UserError(
            f"the term {distils[0]} needs a teacher; name one" if distils else
            "a teacher is given but no term of hr.*, at.* or kd.* has a weight; give one, or leave the teacher out"
        )  # fmt: skip
    if teacher is not None and teacher.tokenizer.fast.get_vocab() != student.tokenizer.fast.get_vocab():
        raise UserError("teacher and student have different vocabularies; give the student the teacher's tokenizer")
    if teacher is not None and teacher.med.config.prompt_ids != student.med.config.prompt_ids:
        raise UserError("teacher and student have different prompts; give the student the teacher's prompt_ids")
    if teacher is not None:
        size = student.med.config, teacher.med.config
        check(teacher.med, Distiller(*size, config.weights, config.layers).want("teacher"))
    check_data(dataset, config)


def check_data(dataset, config: TrainConfig) -> None:
    """Raises UserError where the data lack what a term with weight needs, or are too few for a batch.

    Some pictures may have captions and others questions: each term learns from those that have what it needs.
    """
    wanted = {NEEDS.get(term, "captions"): term for term, weight in config.weights.items() if weight}
    wanted.pop("pictures", None)
    tags = dataset[0].tags
    for needs, term in wanted.items():
        if not (tags is not None and len(tags) if needs == "tags" else has_field(dataset, needs)):
            raise UserError(f"the term {term} needs {needs}, which {dataset.name} does not have; set its weight to 0")
    if len(dataset) < config.batch_size:
        raise UserError(
            f"{dataset.name} {dataset.split} has {plural(len(dataset), 'picture')}, fewer than a batch of "
            f"{config.batch_size}; lower the batch size"
        )


def check_parts(config: TrainConfig, processes: int) -> None:
    """Raises UserError where a batch or queue does not divide into the parts of so many processes."""
    for name, value, parts in (
        ("batch_size", config.batch_size, config.accumulate * processes),
        ("queue", config.queue, processes),
    ):
        if value % parts:
            raise UserError(
                f"train.{name} {value} does not divide into {parts} parts, one a process"
                f"{' and micro-batch' if name == 'batch_size' else ''}; choose a multiple of {parts}"
            )


def check_finite(learner: Learner, step: int) -> None:
    """Raises UserError where a weight is no finite number, so that the checkpoints before stand."""
    if wrong := [name for name, parameter in learner.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(
            f"{wrong[0]} holds what is no finite number after {step} steps; lower the learning rate in a new folder"
        )


class Meter:
    """Means since the log's last row: losses, and the time of a step. Steps that were left out do not count."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.steps, self.sums, self.began = 0, {}, time.perf_counter()

    def add(self, losses: dict[str, float]) -> None:
        self.steps += bool(losses)
        for term, value in losses.items():
            self.sums[term] = self.sums.get(term, 0.0) + value

    def read(self) -> tuple[dict[str, float], float]:
        """Mean loss by term, seconds a step; both begin anew."""
        means = {term: round(value / self.steps, 6) for term, value in self.sums.items()}
        seconds = (time.perf_counter() - self.began) / self.steps
        self._restart()
        return means, seconds

    @contextmanager
    def paused(self):
        since = time.perf_counter()
        yield
        self.began += time.perf_counter() - since


def train(
    student: VLM,
    dataset,
    config: TrainConfig,
    folder: str | Path,
    teacher: VLM | None = None,
    evaluate: Callable[[VLM], dict] | None = None,
    about: dict | None = None,
    progress: bool = True,
    cache: str | Path = CACHE,
    cache_gb: float = CACHE_GB,
    then: Callable[[Run], object] | None = None,
) -> Run:
    """Trains `student` on `dataset`, under `teacher` where one is given, and keeps everything in the run's folder.

    A folder that holds a checkpoint of the same configuration is resumed from it, exactly: weights, optimiser,
    schedule, random numbers, data order, momentum queue, fp16's scale. `evaluate` is called on the student every
    `config.eval_every` steps. Several processes, as `accelerate launch` starts them, share each batch and learn what
    one would; the main one alone evaluates and writes, while the others wait. `cache` is where `config.cache` keeps the
    teacher's outputs, `cache_gb` how many GB they may take. `then` is called on the finished run while no other process
    can have its folder. Raises UserError where the configuration and the data, the teacher or the folder do not fit.
    """
    check_fit(student, teacher, dataset, config)
    AcceleratorState._reset_state()  # or this process would be held to the precision of its first run
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulate),  # ahead of the environment's
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other there
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    if config.precision == "fp16" and accelerator.scaler is None:
        raise UserError("fp16 needs a GPU; train with --precision bf16, or no, here")
    warn_if_emulated(config.precision, "--precision no is faster here")
    check_parts(config, accelerator.num_processes)
    set_seed(config.seed, device_specific=True)
    run = Run(folder)
    with run.alone(), explain_killed_worker():
        keep = partial(TeacherCache, cache, max_gb=cache_gb)
        _train(run, student, dataset, config, teacher, evaluate, about or {}, progress, keep, accelerator)
        for vlm in filter(None, (student, teacher)):
            run_layers(vlm.med)
        student.med.eval()
        accelerator.free_memory()  # of the optimiser's state
        if then:
            then(run)
    return run


def _train(run, student, dataset, config, teacher, evaluate, about, progress, keep, accelerator: Accelerator) -> None:
    """What `train` does once it has the folder to itself."""
    main = accelerator.is_main_process
    kinds = dataset[0].tags
    learner = Learner(student, teacher, config, 0 if kinds is None else len(kinds)).to(accelerator.device)
    start = distributed.run_on_main(
        lambda: run.start(student, config, about | {"inputs": made_of(student, teacher, dataset)})
    )
    if run.finished:
        load_weights(student.med, weights(run.model().med))
        return
    learner.train()
    run_layers(student.med, config.gradient_checkpointing, config.compile)
    batches = ResumableBatchSampler(
        len(dataset), config.batch_size // config.accumulate, config.steps * config.accumulate, config.seed,
        start * config.accumulate, accelerator.process_index, accelerator.num_processes,
        getattr(dataset, "order", None),
    )  # fmt: skip
    size = max(vlm.med.config.image_size for vlm in (student, teacher) if vlm)
    collate = Collate(
        student.tokenizer, size, True, student.med.config.max_text, config.seed, config.augment, config.flip,
        config.questions,
    )  # fmt: skip
    descent = Descent(learner, config, max(1, batches.per_epoch // config.accumulate), accelerator)
    guarded = teacher and guard(teacher, config, accelerator)
    if guarded:
        run_layers(guarded, compiled=config.compile)
    if guarded and config.cache:
        guarded = keep(guarded, dataset, collate, config.layers)
    stream = raise_faults(iter(train_loader(dataset, batches, collate, config.workers)))  # `iter` draws a random number
    if start:
        run.restore(learner, descent.adamw, start, accelerator.scaler)
    step, meter = start, Meter()
    with tqdm(total=config.steps, initial=start, unit="step", disable=not (progress and main), smoothing=0.05) as bar:
        while group := list(islice(stream, config.accumulate)):
            for batch, share in zip(group, descent.shares(group), strict=True):
                losses = descent.micro_batch(batch.to(accelerator.device), guarded, step, share)
            meter.add(losses)
            step += 1
            bar.update()
            if main and descent.left_out:
                run.log({"step": step, "left_out": descent.left_out})
            saves = step % config.save_every == 0 or step == config.steps
            ends = saves or config.active(step) != config.active(step - 1)
            if main and meter.steps and (step % config.log_every == 0 or ends):
                # no row spans a checkpoint, so that resuming repeats none
                means, seconds = meter.read()
                norm = round(descent.norm, 4) if math.isfinite(descent.norm) else None
                at = {"step": step, "epoch": round(step / descent.per_epoch, 3), "lr": descent.rate(step - 1)}
                speed = config.batch_size / seconds
                run.log(at | {"norm": norm, "images_per_s": round(speed, 1), "losses": means})
                bar.set_postfix(loss=f"{means['total']:.3f}", images_per_s=f"{speed:.0f}")
            if evaluate and config.eval_every and step % config.eval_every == 0:
                with meter.paused():
                    score = distributed.run_on_main(partial(evaluate, student))
                    if main:
                        run.log({"step": step, "eval": score})
                    learner.train()
            if saves:
                check_finite(learner, step)
                run.save(learner, descent.adamw, step, accelerator.scaler)
    distributed.run_on_main(lambda: run.finish(student))
