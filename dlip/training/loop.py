"""The training loop: a teacher alone, a student alone, or a student with its teacher.

One training step, in reading order:

1. `_train` below draws a step's micro-batches from `dlip.data.loader`.
2. `dlip.training.optimizer.OptimizerStep` runs forward and backward on each, clips, and updates the weights.
3. `dlip.training.learner.Learner` turns a micro-batch into named losses. It calls the student (`dlip.models.med.Med`),
4. the teacher (`dlip.training.teacher`), and the loss terms (`dlip.losses`), each a class.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, set_seed
from tqdm import tqdm

from dlip.common import distributed, machine
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler, explain_killed_worker, raise_faults, train_loader
from dlip.losses.term import TERMS, Setup
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import require_fp32_blip, warn_if_emulated
from dlip.training.caches.features import FeatureCache, WithoutImages
from dlip.training.caches.teacher import TeacherCache
from dlip.training.config import CACHE, CACHE_GB, TrainConfig
from dlip.training.fit import check_teacher
from dlip.training.layer_modes import set_layer_modes
from dlip.training.learner import Learner, make_terms
from dlip.training.optimizer import OptimizerStep, learning_rate
from dlip.training.run_folder import Run, Stopwatch, run_inputs, set_random_states
from dlip.training.teacher import Teacher
from dlip.training.weights import distills
from dlip.vlm import VLM

MIN_LAST_LR_SHARE = 1e-2
"""Share of the peak learning rate below which the last step learns next to nothing, and a warning says so."""


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
    on_finished: Callable[[Run], object] | None = None,
    on_row: Callable[[dict], object] | None = None,
) -> Run:
    """Train `student` on `dataset`, distilled from `teacher` if there is one; everything is kept in the run's folder.

    A folder that holds a checkpoint of the same configuration is resumed, on a CPU to the same bits: weights,
    optimizer, schedule, random states, data order, momentum queue, fp16 scale. Several processes (`accelerate launch`)
    share each batch and learn what one would; only the main one evaluates and writes.

    evaluate: called on the student every `config.eval_every` steps; its metrics go to the log. about: entries for
    run.json. cache, cache_gb: folder of cached outputs and their total size, used with `config.cache` and
    `config.cache_features`. on_finished: called with the finished run while its folder is still locked. on_row: called
    with each row of the log once it is written.

    Raises UserError where configuration, data, teacher and folder do not fit together.
    """
    config = config.for_dataset(len(dataset))
    check_fit(student, teacher, dataset, config)
    AcceleratorState._reset_state()  # or a second run in this process would keep the first one's precision
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulate),  # overrides the environment's
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other there
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    if config.precision == "fp16" and accelerator.scaler is None:
        with distributed.raised_by_all():
            raise UserError("fp16 needs a GPU; use --precision bf16 or fp32")
    warn_if_emulated(config.precision, "--precision fp32 is faster here")
    check_divisible(config, accelerator.num_processes)
    set_seed(config.seed, device_specific=True)
    run = Run(folder)
    with run.exclusive(), explain_killed_worker():
        try:
            _train(
                run, student, teacher, dataset, config, accelerator, evaluate, on_row, about or {}, progress,
                cache, cache_gb,
            )  # fmt: skip
        finally:  # or a notebook could not use the models of an interrupted run
            for model in filter(None, (student, teacher)):
                set_layer_modes(model.med)
            student.med.eval()
            accelerator.free_memory()  # the optimizer's state
        if on_finished:
            on_finished(run)
    return run


def _train(
    run, student, teacher, dataset, config, accelerator: Accelerator, evaluate, on_row, about, progress,
    cache, cache_gb,
) -> None:  # fmt: skip
    """`train` inside the locked folder."""
    main, device = accelerator.is_main_process, accelerator.device
    if device.type == "cpu":
        machine.keep_freed_memory()
    tags = dataset[0].tags if "tags" in dataset.fields else None
    learner = Learner(student, teacher, config, 0 if tags is None else tags.shape[-1]).to(device)
    start = distributed.run_on_main(
        lambda: run.start(student, config, about | {"inputs": run_inputs(student, teacher, dataset)})
    )
    if run.finished:
        student.med.load_state_dict(run.model().med.state_dict())
        return
    learner.train()
    set_layer_modes(student.med, config.gradient_checkpointing, config.compile)

    batches = ResumableBatchSampler(
        len(dataset), config.batch_size, config.steps, config.seed, config.accumulate, start,
        accelerator.process_index, accelerator.num_processes, dataset.order,
    )  # fmt: skip
    image_size = max(vlm.image_size for vlm in (student, teacher) if vlm)
    collate = Collate(
        student.tokenizer, image_size, max_text=student.med.config.max_text, seed=config.seed,
        augment=config.augment, flip=config.flip, questions=config.questions, views=config.cache_features,
    )  # fmt: skip
    steps_per_epoch = config.steps_per_epoch(len(dataset))
    optimizer_step = OptimizerStep(learner, config, steps_per_epoch, accelerator)
    states = run.restore(learner, optimizer_step.optimizer, start, accelerator.scaler) if start else {}
    frozen_teacher = teacher and Teacher(teacher.med.to(device))
    if frozen_teacher:
        set_layer_modes(frozen_teacher, compiled=config.compile)
    if frozen_teacher and config.cache:
        frozen_teacher = TeacherCache(cache, frozen_teacher, dataset, collate, config.layers, cache_gb)
    if config.cache_features:
        opened = [frozen_teacher.folder] if frozen_teacher and config.cache else []
        cached = frozen_backbones(student, teacher, config)
        for vlm, user in ((student, learner), (teacher, frozen_teacher)):
            if vlm in cached:
                user.feature_cache = FeatureCache(
                    cache, vlm.med, dataset, collate, accelerator.autocast, config.precision, cache_gb, opened
                )
                opened.append(user.feature_cache.folder)
        if student in cached and (teacher in cached or teacher is None or config.cache):
            dataset, collate = WithoutImages(dataset), replace(collate, reads_images=False)
    distributed.run_on_main(lambda: None)  # all wait for caches that are being read, longer than a step would
    stream = raise_faults(iter(train_loader(dataset, batches, collate, config.workers)))  # `iter` draws a random number
    if states:
        set_random_states(states)
        dataset.load_state_dict(states["data"])

    step, meter = start, Meter()

    def log(row: dict) -> None:
        run.log(row)
        if on_row:
            with run.stopwatch.paused(), meter.stopwatch.paused():
                on_row(row)

    with tqdm(total=config.steps, initial=start, unit="step", disable=not (progress and main), smoothing=0.05) as bar:
        while micro_batches := list(islice(stream, config.accumulate)):
            meter.add(optimizer_step(micro_batches, frozen_teacher, step))
            step += 1
            bar.update()
            if main and optimizer_step.nonfinite:
                log({"step": step, "skipped": optimizer_step.nonfinite})
            saves = step % config.save_every == 0 or step == config.steps
            terms_change = config.active(step) != config.active(step - 1)
            # a row ends at every checkpoint, so that a resumed run repeats none
            if main and meter.steps and (step % config.log_every == 0 or saves or terms_change):
                losses, seconds = meter.read()
                images_per_s = round(config.batch_size / seconds, 1)
                log({
                    "step": step, "epoch": round(step / steps_per_epoch, 3),
                    "lr": optimizer_step.optimizer.param_groups[0]["lr"],
                    "norm": round(optimizer_step.norm, 4) if math.isfinite(optimizer_step.norm) else None,
                    "images_per_s": images_per_s, "losses": losses,
                })  # fmt: skip
                bar.set_postfix(loss=f"{losses['total']:.3f}", images_per_s=f"{images_per_s:.0f}")
            if evaluate and config.eval_every and step % config.eval_every == 0:
                with run.stopwatch.paused(), meter.stopwatch.paused():
                    metrics = distributed.run_on_main(partial(evaluate, student))
                    learner.train()
                if main:
                    log({"step": step, "eval": metrics})
            if saves:
                check_finite(learner, step)
                run.save(learner, optimizer_step.optimizer, step, accelerator.scaler, dataset.state_dict())
    distributed.run_on_main(lambda: run.finish(student))


class Meter:
    """Mean losses and step time since the log's last row; of skipped steps only the time counts."""

    def __init__(self):
        self.steps, self.sums, self.stopwatch = 0, Counter(), Stopwatch()

    def add(self, losses: dict[str, float]) -> None:
        self.steps += bool(losses)
        self.sums.update(losses)

    def read(self) -> tuple[dict[str, float], float]:
        """Mean loss by term and seconds per step; both start anew."""
        means = {term: round(value / self.steps, 6) for term, value in self.sums.items()}
        seconds = self.stopwatch.read() / self.steps
        self.steps, self.sums = 0, Counter()
        return means, seconds


# --- checks -----------------------------------------------------------------------------------------------------------


@distributed.raised_by_all()
def check_fit(student: VLM, teacher: VLM | None, dataset, config: TrainConfig) -> None:
    """Raise UserError where the weighted terms, the models and the data do not fit together, or for a student that
    cannot be trained: in bf16, of several models, a CLIP or SigLIP, packed, or its own teacher."""
    for model in filter(None, (student, teacher)):
        refuse_packed(model.med)
    require_fp32_blip(student.med, "training")
    terms = distills(config.weights)
    if terms and teacher is None:
        raise UserError(f"the term {terms[0]} needs a teacher; name one")
    if teacher is not None:
        if student.med in teacher.med.members:
            raise UserError("teacher and student are one model, which cannot be frozen and trained; load it twice")
        if not terms:
            raise UserError("no term of hr.*, at.* or kd.* has a weight; set one, or drop the teacher")
        check_teacher(student, teacher, config.weights)
        vocabulary = student.tokenizer and student.tokenizer.vocabulary
        make_terms(Setup(student.med, teacher.med, config, vocabulary=vocabulary), distilling=True)  # do layers fit?
        if config.cache and (len(teacher.med.members) > 1 or not teacher.med.reads(student.tokenizer.vocabulary)):
            raise UserError("outputs of a teacher of several checkpoints, or of another vocabulary, cannot be cached; "
                            "train without the cache")  # fmt: skip
    if config.cache_features and not frozen_backbones(student, teacher, config):
        raise UserError(
            "no model has a frozen image backbone whose features could be cached; drop --cache-features, or give the "
            "student an image_backbone, and no --backbone-lr or fewer --backbone-stages than it has"
        )
    if dataset.is_stream and (config.cache or config.cache_features):
        raise UserError(f"{dataset.name} is a stream, whose outputs cannot be cached; drop stream=true, or the caches")
    if config.backbone_lr and not student.med.config.image_backbone:
        raise UserError("the student has no image backbone; drop --backbone-lr, or give its size an image_backbone")
    check_data(dataset, config)
    last = learning_rate(config.steps - 1, config, config.steps_per_epoch(len(dataset))) / config.lr
    if config.steps <= config.warmup and last < 1:
        warnings.warn(
            f"the run ends during its warm-up of {config.warmup} steps, at {last:.0%} of the peak learning rate; use "
            "more --steps, or a shorter --warmup",
            stacklevel=3,
        )
    elif config.schedule == "epoch" and last < MIN_LAST_LR_SHARE:
        warnings.warn(
            f"the last step has {last:.0e} of the peak learning rate, as it falls in every epoch; use "
            "--schedule cosine, or fewer steps",
            stacklevel=3,
        )


def frozen_backbones(student: VLM, teacher: VLM | None, config: TrainConfig) -> list[VLM]:
    """The models that read images in every step by a backbone whose first stages at least are not trained."""
    all_trained = config.backbone_lr and not config.backbone_stages
    frozen = [None if config.cache else teacher, None if all_trained else student]
    return [vlm for vlm in frozen if vlm and vlm.med.config.image_backbone]


def check_data(dataset, config: TrainConfig) -> None:
    """Raise UserError where the data lack what a weighted term needs, or are smaller than a batch.

    Some images may have captions and others questions: each term learns from those that have what it needs.
    """
    needs = {TERMS[term].needs: term for term, weight in config.weights.items() if weight}
    for noun, term in needs.items():
        if noun not in dataset.fields | {"images"}:
            raise UserError(
                f"the term {term} needs {noun}, which {dataset.name} does not have (the first without is image 0); set "
                "its weight to 0"
            )
    if len(dataset) < config.batch_size:
        raise UserError(
            f"{dataset.name} {dataset.split} has {plural(len(dataset), 'image')}, fewer than a batch of "
            f"{config.batch_size}; lower the batch size"
        )


@distributed.raised_by_all()
def check_divisible(config: TrainConfig, processes: int) -> None:
    """Raise UserError where the batch or the queue cannot be split evenly over processes and micro-batches."""
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch_size {config.batch_size} is not divisible by {parts} (processes times micro-batches); use a "
            f"multiple of {parts}"
        )
    if config.queue % processes:
        raise UserError(f"queue {config.queue} is not divisible by {processes} processes; use a multiple")


@distributed.raised_by_all()
def check_finite(learner: Learner, step: int) -> None:
    """Raise UserError where a weight is non-finite, before a checkpoint would keep it."""
    if bad := [name for name, parameter in learner.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"{bad[0]} is non-finite after {step} steps; lower the learning rate in a new folder")
