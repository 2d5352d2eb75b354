"""A run's folder: its configuration, its log, its checkpoints, and in the end its model."""

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dlip.checkpoints.load import save_model
from dlip.checkpoints.tensors import checkpoint_errors, checksum, read_tensors, weights, write_tensors
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.common.files import (
    exclusive_lock,
    leftover_temporaries,
    read_json,
    system_errors,
    write_atomically,
    write_json,
)
from dlip.common.machine import PACKAGES, code_version, machine_info, package_versions
from dlip.common.text import plural
from dlip.models.config import ModelConfig
from dlip.training.config import TrainConfig
from dlip.vlm import VLM

KEEP = 2  # checkpoints
NAMED = 5  # things that differ
OWN = ("run.json", "log.jsonl", "checkpoint-*", "tokenizer.json", "model.safetensors", "config.json", "record.json")
"""Files of a run."""
MODEL = ("config.json", "model.safetensors", "pytorch_model.bin", "record.json")
"""Files of a model, which a run that begins would take the place of."""
FIXED = {
    "teacher": "teacher (its weights differ)", "words": "vocabulary (its words or their numbers differ)",
    "pictures": "number of pictures",
}  # fmt: skip
"""Inputs of a run that cannot change, in words."""
BY_NAME = {"teacher": "teacher", "tokenizer": "words", "start": "start"}
"""Names of models that a run was given, which may be others in another working directory -> the input that tells."""
FREE = {
    "data": "data (texts, or pictures' names, sizes or times)", "start": "student's first weights",
    "threads": "threads, on which last digits depend,",
    "torch": "release and build of torch, on which last digits depend,",
    "releases": f"releases of {', '.join(PACKAGES)}, on which last digits depend,",
    "gpu": "device, on which last digits depend,",
    "instructions": "processor's instructions, on which last digits depend,",
    "code": "version of this code, on which last digits depend,",
}  # fmt: skip
"""Those whose change may be innocent: a copy has other times, another torch other random numbers, newer code the same
steps."""


def weights_hash(vlm: VLM) -> str:
    """SHA-256 of a model's weights."""
    return checksum({name: tensor.detach().cpu() for name, tensor in weights(vlm.med).items()})


def run_inputs(student: VLM, teacher: VLM | None, dataset) -> dict:
    """What a run begins with, as hashes: "teacher" (null for none), "start" (the student's first weights), "words" (its
    vocabulary), "data"; and its number of "pictures", of "threads", and the machine and the code that it runs by."""
    data = dataset.fingerprint() if hasattr(dataset, "fingerprint") else None  # a class of the user's own may have none
    here, words = machine_info(), json.dumps(student.tokenizer.fast.get_vocab(), sort_keys=True)
    return {
        "teacher": teacher and weights_hash(teacher), "start": weights_hash(student),
        "words": hashlib.sha256(words.encode()).hexdigest(), "data": data, "pictures": len(dataset),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "releases": package_versions(),
        "gpu": here["gpu"], "instructions": here["instructions"], "code": code_version(),
    }  # fmt: skip


def _sound(row) -> bool:
    """Whether it is a row of a log."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("losses", {}), dict):
        return False
    numbers = row.get("seconds", 0.0), *row.get("losses", {}).values()
    return all(number is None or type(number) in (int, float) for number in numbers) and numbers[0] is not None


class Run:
    """`run.json` (what was asked for), `log.jsonl`, `checkpoint-*.safetensors`, and the finished model beside them."""

    def __init__(self, folder: str | Path):
        self.folder, self._in_place = Path(folder), None

    @property
    def finished(self) -> bool:
        return all((self.folder / name).is_file() for name in ("model.safetensors", "config.json"))  # written last

    def model(self) -> VLM:
        """The trained model. Raises UserError where the run is not finished."""
        vlm = VLM.load(self.folder.resolve())  # the folder itself, also where a shipped model is called as it is
        vlm.name = str(self.folder)
        return vlm

    def config(self) -> dict:
        return read_json(self.folder / "run.json")

    def rows(self) -> list[dict]:
        """The log: rows {step, epoch, lr, norm, images_per_s, losses}, {step, eval} and {step, left_out}."""
        path, rows = self.folder / "log.jsonl", []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if _sound(row):  # else left half written by a full disk, or damaged
                rows.append(row)
        return rows

    def losses(self) -> dict[str, list[float | None]]:
        """The log's losses as columns: "step" and one list a term, None before it joins."""
        rows = [row for row in self.rows() if "losses" in row]
        terms = dict.fromkeys(term for row in reversed(rows) for term in row["losses"])
        return {"step": [row["step"] for row in rows], **{t: [row["losses"].get(t) for row in rows] for t in terms}}

    def left_out(self) -> int:
        """Steps that were left out, their losses or gradients no finite numbers."""
        return sum("left_out" in row for row in self.rows())

    def seconds(self) -> float:
        """Wall time spent training, over all its sessions."""
        return sum(row.get("seconds", 0.0) for row in self.rows())

    @contextmanager
    def alone(self):
        """The folder is this run's meanwhile. Raises UserError, in all of its processes, where another trains in it."""
        busy = f"another process trains in {self.folder}; wait for it, or choose another folder"
        with ExitStack() as stack:

            def hold() -> None:
                self._in_place = stack.enter_context(exclusive_lock(self.folder / ".lock", busy))

            distributed.run_on_main(hold)
            yield

    def _check_place(self) -> None:
        """Raises UserError where the folder was taken away, in whose place there may be another run's."""
        if self._in_place and not self._in_place():
            raise UserError(
                f"{self.folder} was taken away while a run was in it, which stops here; give its command again, or "
                f"choose another folder"
            )

    # --- written by the training loop ---------------------------------------------------------------------------------

    def start(self, student: VLM, config: TrainConfig, about: dict) -> int:
        """Starts the folder, or finds the step to resume from: of a finished run, whose checkpoints may be gone, the
        last. Raises UserError where it holds another run, of which a checkpoint or a model is kept."""
        asked = json.loads(json.dumps({"model": student.med.config.to_dict(), "train": config.to_dict(), **about}))
        path, theirs = self.folder / "run.json", [name for name in MODEL if (self.folder / name).exists()]
        if not path.is_file() and theirs:
            raise UserError(f"{self.folder} holds {theirs[0]}, but no run that could go on; choose another folder")
        kept = path.is_file() and bool(theirs or self._checkpoints())
        with checkpoint_errors(path):
            different, innocent = _compared(_completed(self.config()), asked) if kept else ([], [])
        if different:
            few = ", ".join(different[:NAMED]) + ", ..." * (len(different) > NAMED)
            raise UserError(f"{self.folder} holds a run with another {few}; choose another folder")
        for noun in innocent:
            warnings.warn(
                f"the {noun} are not those that the run in {self.folder} began with; it goes on", stacklevel=2
            )
        for left in (one for name in OWN for one in leftover_temporaries(self.folder, name)):
            left.unlink()
        if not kept:
            write_json(path, asked)
        start = self._latest(config.steps)
        self._keep_damaged_log()
        lines = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= start)
        write_atomically(self.folder / "log.jsonl", lambda temporary: temporary.write_text(lines))
        self._since = time.perf_counter()
        return start

    def _keep_damaged_log(self) -> None:
        """Keeps a log aside that has rows, other than a last one half written, which cannot be read; with a warning."""
        path = self.folder / "log.jsonl"
        lost = path.read_bytes().count(b"\n") - len(self.rows()) if path.is_file() else 0
        if lost > 0:
            aside = path.with_name(f"damaged-{path.name}")
            write_atomically(aside, partial(shutil.copyfile, path))  # a link of that name would lead elsewhere
            warnings.warn(
                f"left out of {path}: {plural(lost, 'damaged row')}; as it was it is {aside.name}", stacklevel=3
            )

    def _latest(self, steps: int) -> int:
        """The step of the last checkpoint that is whole, else 0; of a finished run, whose model is one, all `steps`.
        Damaged ones are left aside, with a warning.

        Raises UserError where one may not be read.
        """
        model = [self.folder / "model.safetensors"] if self.finished else []
        for path in reversed([*self._checkpoints(), *model]):
            if not os.access(path, os.R_OK):
                raise UserError(f"{path} may not be read; allow it, or choose another folder")
            try:
                read_tensors(path, checked=path not in model)  # older versions' models have no checksum
            except UserError as fault:
                aside = path.rename(path.with_name(f"damaged-{path.name}"))
                sentence = f"{fault}; the run goes on from what was kept before, the file is now {aside.name}"
                warnings.warn(sentence, stacklevel=3)
                continue
            return steps if path in model else int(path.stem.rpartition("-")[2])
        return 0

    def _checkpoints(self) -> list[Path]:
        """The earliest first."""
        return sorted(self.folder.glob(f"checkpoint-{'[0-9]' * 8}.safetensors"))

    def log(self, row: dict) -> None:
        now = time.perf_counter()
        row = {**row, "seconds": round(now - self._since, 3)}
        self._since = now
        self._check_place()
        path = self.folder / "log.jsonl"
        with system_errors(path), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int, scaler=None) -> None:
        """A checkpoint of everything that the next step depends on: every process calls this, the main one writes.

        What processes do not share, random numbers and buffers (parts of a queue), is kept of each by its rank.
        scaler: of the losses in fp16, a `torch.amp.GradScaler`.
        """
        own = {f"learner.{name}": buffer.cpu() for name, buffer in learner.named_buffers()}
        own["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            own["rng.cuda"] = torch.cuda.get_rng_state()
        parts = distributed.gather_to_main(own)
        if parts is None:
            return
        tensors = {_of(rank, name): tensor for rank, part in enumerate(parts) for name, tensor in part.items()}
        tensors |= {f"learner.{name}": parameter for name, parameter in learner.named_parameters()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        self._check_place()
        with open(self.folder / "log.jsonl", "a") as log:
            os.fsync(log.fileno())  # no checkpoint is ahead of its log
        about = {"step": step, "processes": len(parts), "scaler": scaler and scaler.state_dict(), "run": self._asked()}
        about["moments"] = len(optimiser.state_dict()["state"])  # none where every step so far was left out
        write_tensors(self._checkpoint(step), tensors, about)
        for old in self._checkpoints()[:-KEEP]:
            old.unlink()

    def restore(self, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int, scaler=None) -> None:
        """The state that `save` kept, in every process its own.

        Raises UserError where the checkpoint is broken, of another run or shape or of another number of processes.
        """
        path = self._checkpoint(step)
        tensors, about = read_tensors(path)
        if (processes := about.get("processes", 1)) != (ours := distributed.world_size()):
            raise UserError(
                f"{path} is of another number of processes, {processes}, not {ours}; resume it with as many"
            )
        other = UserError(f"{path} is of another step, run, model or losses; take it away, or choose another folder")
        if about.get("step") != step or about.get("run", self._asked()) != self._asked():  # older ones have no "run"
            raise other
        rank, parameters, buffers = distributed.rank(), dict(learner.named_parameters()), dict(learner.named_buffers())
        saved = {name.removeprefix("learner.") for name in tensors if name.startswith("learner.")}
        own = {name: _of(rank if name in buffers else 0, f"learner.{name}") for name in (*parameters, *buffers)}
        if saved != {*parameters, *buffers} or not {*own.values()} <= tensors.keys():
            raise other
        state, slots = moments(tensors), [slot for group in optimiser.param_groups for slot in group["params"]]
        pairs = [(tensors[own[name]], tensor) for name, tensor in {**parameters, **buffers}.items()]
        pairs += [(kept[key], slots[i]) for i, kept in state.items() if i < len(slots) for key in MOMENTS & kept.keys()]
        alike = all(kept.shape == tensor.shape and kept.dtype == tensor.dtype for kept, tensor in pairs)
        many = about.get("moments", len(state) or 1)
        if not alike or len(state) != many or any(i >= len(slots) or not _complete(kept) for i, kept in state.items()):
            raise other
        with torch.no_grad():
            for kept, tensor in pairs[: len(own)]:
                tensor.copy_(kept)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        try:
            torch.set_rng_state(tensors[_of(rank, "rng.cpu")])
            if _of(rank, "rng.cuda") in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors[_of(rank, "rng.cuda")])
        except (KeyError, RuntimeError, TypeError):
            raise other from None
        if scaler and about["scaler"]:
            scaler.load_state_dict(about["scaler"])

    def finish(self, student: VLM) -> None:
        save_model(student.med, student.tokenizer, self.folder, about={"run": self.config()})

    def _asked(self) -> str:
        """SHA-256 of run.json, which is written once."""
        return hashlib.sha256((self.folder / "run.json").read_bytes()).hexdigest()

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:08d}.safetensors"


MOMENTS = {"exp_avg", "exp_avg_sq"}
"""Of a weight in AdamW's state, beside "step"."""


def moments(tensors: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """An optimiser's state by the place of its weight, from names as optimiser.3.exp_avg; of other names by -1."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name in (name for name in tensors if name.startswith("optimiser.")):
        found = re.fullmatch(r"optimiser\.(\d{1,9})\.(\w+)", name)
        state.setdefault(int(found[1]) if found else -1, {})[found[2] if found else name] = tensors[name]
    return state


def _complete(kept: dict[str, torch.Tensor]) -> bool:
    """Whether a weight's state has all that AdamW reads."""
    return kept.keys() == {*MOMENTS, "step"} and not kept["step"].ndim and kept["step"].is_floating_point()


def _completed(held: dict) -> dict:
    """With the defaults of fields that the configurations got since the run began."""
    known = {"model": ModelConfig.from_dict(held["model"]), "train": TrainConfig.from_dict(held["train"])}
    return held | json.loads(json.dumps({name: config.to_dict() for name, config in known.items()}))


def _compared(held: dict, asked: dict) -> tuple[list[str], list[str]]:
    """What makes a run that is `asked` for another than the one that is `held`, and what may be innocent, in words."""
    then, now = (run.get("inputs", {}) for run in (held, asked))  # older runs have none
    others = [what for what in then if then[what] != now.get(what)]
    different = [noun for what, noun in FIXED.items() if what in others]
    innocent = [noun for what, noun in FREE.items() if what in others]
    free = {"train.workers"} | {name for name, what in BY_NAME.items() if what in then and what not in others}
    then, now = (_flat({**run, "inputs": None}) for run in (held, asked))
    return sorted(name for name in {*then, *now} - free if then.get(name) != now.get(name)) + different, innocent


def _flat(config: dict) -> dict:
    """What a configuration says, by its place down to the second level: train.steps."""
    return {
        f"{part}.{name}" if name else part: value
        for part, values in config.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _of(rank: int, name: str) -> str:
    """A tensor's name in a checkpoint: that of a process alone, with the rank before it in all but the main one."""
    return f"{rank}.{name}" if rank else name
