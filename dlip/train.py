"""One loop for every model: a teacher alone, a student alone, a student under its teacher."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm

from dlip import objectives, parallel
from dlip.cache import TeacherCache
from dlip.composite import check
from dlip.config import CACHE, TrainConfig
from dlip.data import holds
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.loader import Batches, train_loader
from dlip.distillation import Distiller, Teacher
from dlip.errors import UserError
from dlip.features import TASKS, Want
from dlip.model import ImageLayer
from dlip.recompute import recompute
from dlip.run import Run
from dlip.vlm import VLM

NEEDS = {"vqa": "questions", "kd.vqa": "questions", "tags": "tags", "hr.image": "pictures"}
"""What a term needs of the data; captions where nothing is said."""


class Learner(nn.Module):
    """All that is trained together, student, projections, momentum encoders: a batch in, named losses out.

    kinds: how many kinds of things the data's tags tell apart; their head is trained with the student and dropped.
    """

    def __init__(self, student: VLM, teacher: VLM | None, config: TrainConfig, kinds: int = 0):
        super().__init__()
        self.config, self.med = config, student.med
        self.momentum = None
        if config.momentum:
            self.momentum = objectives.MomentumITC(self.med, config.queue, config.momentum, config.alpha)
        self.distiller = None
        if teacher is not None:
            self.distiller = Distiller(
                student.med.config,
                teacher.med.config,
                config.weights,
                config.layers,
                config.learn_teacher_projection,
                config.center_states,
            )
        tagged = config.weights.get("tags")
        self.tag_head = nn.Linear(student.med.config.image_width, kinds) if tagged else None

    def want(self, terms: frozenset[str]) -> Want:
        """What `terms` read of the student."""
        want = Want(terms & set(TASKS), {("image", "states"): (-1,)} if "tags" in terms else {})
        return want | self.distiller.want("student", terms) if self.distiller else want

    @parallel.together()
    def forward(self, batch: Batch, teacher: Teacher | None, step: int, epoch: float) -> dict[str, Tensor]:
        """Term -> loss, unweighted, of this process's part of the batch, of those that have joined by `step`.

        `epoch` counts epochs with their fraction.
        """
        terms = self.config.active(step)
        if parallel.sharers() > 1:
            batch = levelled(batch, self.med.config.pad_id)
        features = self.med(batch, self.want(terms))
        losses = {}
        for term in (task for task in TASKS if task in terms):
            if term == "itc" and self.momentum is not None:
                losses[term] = self.momentum(features, self.med, batch, epoch)
            elif term in ("lm", "vqa"):
                losses[term] = getattr(objectives, term)(features, self.config.label_smoothing)
            else:
                losses[term] = getattr(objectives, term)(features)
        if "tags" in terms:
            losses["tags"] = objectives.tags(self.tag_head(features.states("image")[:, 0]), batch.tags)
        if self.distiller is not None:
            known = teacher(batch, self.distiller.want("teacher", terms), features.pairs)
            losses |= self.distiller(features, known, terms)
        return losses


def levelled(batch: Batch, pad_id: int) -> Batch:
    """Captions padded to the longest of all processes, so that they can be gathered."""
    length = torch.tensor([batch.ids.shape[1]], device=batch.ids.device)
    more = (0, int(parallel.gather(length).max() - length))
    return replace(batch, ids=F.pad(batch.ids, more, value=pad_id), mask=F.pad(batch.mask, more))


def sharded(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher with its weights spread over all processes, layers of the image encoder apart, the rest together."""
    mesh = init_device_mesh(device.type, (parallel.processes(),))
    for layer in [module for module in teacher.modules() if isinstance(module, ImageLayer)]:
        fully_shard(layer, mesh=mesh)
    single = {parameter for parameter in teacher.parameters() if not parameter.ndim}
    return fully_shard(teacher, mesh=mesh, reshard_after_forward=True, ignored_params=single).to(device)


def learning_rate(step: int, config: TrainConfig, per_epoch: int) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the schedule."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * config.decay ** (step // per_epoch)


def optimiser(learner: Learner, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over every trained parameter; biases, norms and single vectors do not decay."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.squeeze().ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def unsound(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> list[str]:
    """The terms whose own gradient holds what is no finite number; "the total" where it is only their sum's."""
    found = []
    for term, loss in losses.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
            found.append(term)
    return found or ["the total"]


def check_fit(student: VLM, teacher: VLM | None, dataset, config: TrainConfig) -> None:
    """Raises UserError where the terms with weight, the models and the data do not go together."""
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
        if not (tags is not None and len(tags) if needs == "tags" else holds(dataset, needs)):
            raise UserError(f"the term {term} needs {needs}, which {dataset.name} does not have; set its weight to 0")
    if len(dataset) < config.batch_size:
        raise UserError(
            f"{dataset.name} {dataset.split} has {len(dataset)} pictures, fewer than a batch of {config.batch_size}; "
            f"lower the batch size"
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
) -> Run:
    """Trains `student` on `dataset`, under `teacher` where one is given, and keeps everything in the run's folder.

    A folder that holds a checkpoint of the same configuration is resumed from it, exactly: weights, optimiser,
    schedule, random numbers, data order, momentum queue, fp16's scale. `evaluate` is called on the student every
    `config.eval_every` steps. Several processes, as `accelerate launch` starts them, share each batch and learn what
    one would; the main one alone evaluates and writes, while the others wait. `cache` is where
    `config.cache` keeps the teacher's outputs. Raises UserError where the configuration and the data, the teacher or
    the folder do not fit.
    """
    check_fit(student, teacher, dataset, config)
    AcceleratorState._reset_state()  # or this process would be held to the precision of its first run
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other there
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    check_parts(config, accelerator.num_processes)
    set_seed(config.seed, device_specific=True)
    run = Run(Path(folder))
    main = accelerator.is_main_process
    kinds = dataset[0].tags
    learner = Learner(student, teacher, config, 0 if kinds is None else len(kinds)).to(accelerator.device)
    start = parallel.on_main(lambda: run.start(student, config, about or {}))
    adamw = optimiser(learner, config)
    learner.train()
    if config.gradient_checkpointing:
        recompute(student.med)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # what accelerate still calls it
        model, adamw = accelerator.prepare(learner, adamw)
    clipped = [
        p for p in model.parameters() if p.ndim and p.requires_grad
    ]  # the temperature's gradient would drown the others
    scalars = [p for p in model.parameters() if not p.ndim and p.requires_grad]

    micro = config.batch_size // config.accumulate
    size = max(vlm.med.config.image_size for vlm in (student, teacher) if vlm)
    batches = Batches(
        len(dataset), micro, config.steps * config.accumulate, config.seed, start * config.accumulate,
        accelerator.process_index, accelerator.num_processes, getattr(dataset, "order", None),
    )  # fmt: skip
    per_epoch = max(1, batches.per_epoch // config.accumulate)
    collate = Collate(
        student.tokenizer, size, True, student.med.config.max_text, config.seed, config.augment, config.flip,
        config.questions,
    )  # fmt: skip
    guarded = None
    if teacher and config.shard_teacher and accelerator.num_processes > 1:
        guarded = sharded(Teacher(copy.deepcopy(teacher.med)), accelerator.device)
    elif teacher:
        guarded = Teacher(teacher.med.to(accelerator.device))
    if guarded and config.cache:
        guarded = TeacherCache(cache, guarded, dataset, collate, config.layers)
    stream = iter(train_loader(dataset, batches, collate, config.workers))  # draws a random number
    if start:
        run.restore(learner, adamw, start, accelerator.scaler)
    bar = tqdm(total=config.steps, initial=start, unit="step", disable=not (progress and main), smoothing=0.05)
    sums, began, since, wrong = {}, time.perf_counter(), start, []
    step = start
    with bar:
        for micro_step, batch in enumerate(stream, start * config.accumulate):
            step = micro_step // config.accumulate
            rate = learning_rate(step, config, per_epoch)
            for group in adamw.param_groups:
                group["lr"] = rate
            with accelerator.accumulate(model), accelerator.autocast():
                batch = batch.to(accelerator.device)
                losses = model(batch, guarded, step, step / per_epoch)
                total = sum(config.weights[term] * loss for term, loss in losses.items())
                found = torch.stack([*losses.values(), total]).detach().float()
                values = dict(zip([*losses, "total"], accelerator.reduce(found, "mean").tolist(), strict=True))
                if not wrong and not all(map(math.isfinite, values.values())):
                    wrong = [term for term in losses if not math.isfinite(values[term])] or ["the total"]
                if not wrong:
                    accelerator.backward(total)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(clipped, config.clip).item()
                    sound = math.isfinite(norm) and all(p.grad is None or p.grad.isfinite() for p in scalars)
                    if not (wrong or accelerator.scaler or sound):  # which in fp16 the scaler sees to
                        losses = learner(batch, guarded, step, step / per_epoch)
                        wrong = [f"the gradient of {term}" for term in unsound(losses, [*clipped, *scalars])]
                if wrong and config.nonfinite == "stop":
                    raise UserError(
                        f"{', '.join(wrong)} is no finite number in step {step}; lower the learning rate in a new "
                        f"folder, or leave such steps out with --nonfinite skip"
                    )
                if not wrong:
                    adamw.step()
                if not wrong or accelerator.sync_gradients:
                    adamw.zero_grad()
            for term, value in ({} if wrong else values).items():
                sums[term] = sums.get(term, 0.0) + value / config.accumulate
            if not accelerator.sync_gradients:
                continue
            if wrong:
                sentence = f"{', '.join(wrong)} is no finite number in step {step}; the step is left out"
                warnings.warn(sentence, stacklevel=2)
                since, wrong = since + 1, []
                if learner.momentum is not None:
                    learner.momentum.waiting.clear()
            else:
                with torch.no_grad():
                    learner.med.temp.clamp_(0.001, 0.5)  # BLIP's bounds
                if learner.momentum is not None:
                    learner.momentum.step(learner.med)
            step += 1
            bar.update()
            saves = step % config.save_every == 0 or step == config.steps
            ends = saves or config.active(step) != config.active(step - 1)
            if main and step > since and (step % config.log_every == 0 or ends):
                # no row spans a checkpoint, so that resuming repeats none
                seconds = (time.perf_counter() - began) / (step - since)
                means = {term: round(value / (step - since), 6) for term, value in sums.items()}
                length = round(norm, 4) if math.isfinite(norm) else None  # in fp16 a step may overflow, and is left out
                speed = {"lr": rate, "norm": length, "pictures_per_s": round(config.batch_size / seconds, 1)}
                run.log({"step": step, "epoch": round(step / per_epoch, 3), **speed, "losses": means})
                bar.set_postfix(loss=f"{means['total']:.3f}", pictures_per_s=f"{speed['pictures_per_s']:.0f}")
                sums, began, since = {}, time.perf_counter(), step
            if evaluate and config.eval_every and step % config.eval_every == 0:
                paused = time.perf_counter()
                score = parallel.on_main(partial(evaluate, student))
                if main:
                    run.log({"step": step, "eval": score})
                learner.train()
                began += time.perf_counter() - paused
            if saves:
                run.save(learner, adamw, step, accelerator.scaler)
    if not all(parameter.isfinite().all() for parameter in learner.parameters()):
        raise UserError(
            "the last step left weights that are no finite numbers; lower the learning rate in a new folder"
        )
    parallel.on_main(lambda: run.finish(student))
    recompute(student.med.eval(), False)
    return run
