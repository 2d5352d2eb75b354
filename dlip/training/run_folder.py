"""A run's folder: its configuration, log, checkpoints, and in the end its model."""

import hashlib
import json
import os
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
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
from dlip.models.config import ModelConfig
from dlip.training.config import TrainConfig
from dlip.vlm import VLM

KEPT_CHECKPOINTS = 2
MAX_NAMED_DIFFERENCES = 5
RUN_FILES = (
    "run.json", "log.jsonl", "checkpoint-*", "tokenizer.json", "model.safetensors", "config.json", "record.json",
)  # fmt: skip
MODEL_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "record.json")
"""Files that a new run must not overwrite."""
FIXED_INPUTS = {
    "teacher": "teacher (its weights differ)",
    "vocabulary": "vocabulary (its tokens or their ids differ)",
    "images": "number of images",
}
"""Inputs that may not change when a run is resumed -> their name in messages."""
CHANGEABLE_INPUTS = {
    "data": "data (texts, or the images' names, sizes or times)",
    "start": "student's initial weights",
    "threads": "number of threads",
    "torch": "release and build of torch",
    "releases": f"releases of {', '.join(PACKAGES)}",
    "gpu": "device",
    "instructions": "processor's instructions",
    "code": "version of this code",
}
"""Inputs whose change gives a warning -> their name in messages. Copied data have other times, and the others change
results by rounding at most."""
CHANGEABLE_OPTIONS = ("workers", "nonfinite", "gradient_checkpointing", "log_every", "save_every")
"""Options of training that may differ when a run is resumed, as they leave finite steps as they are."""
INPUT_OF_NAME = {"teacher": "teacher", "tokenizer": "vocabulary", "init_from": "start", "data.name": "data"}
"""Key of run.json that holds a name -> the input it stands for. Another name of the same input is no change."""


def weights_hash(vlm: VLM) -> str:
    """SHA-256 of a model's weights."""
    return checksum({name: tensor.detach().cpu() for name, tensor in weights(vlm.med).items()})


def run_inputs(student: VLM, teacher: VLM | None, dataset) -> dict:
    """What a run starts from, for run.json.

    SHA-256 of the "teacher"'s weights (None without one), of the student's at the "start" and of its "vocabulary"; the
    "data"'s fingerprint and number of "images"; and the threads, releases, machine and code that compute.
    """
    here, vocabulary = machine_info(), json.dumps(student.tokenizer.fast.get_vocab(), sort_keys=True)
    return {
        "teacher": teacher and weights_hash(teacher), "start": weights_hash(student),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "data": dataset.fingerprint(),
        "images": len(dataset), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "releases": package_versions(), "gpu": here["gpu"], "instructions": here["instructions"],
        "code": code_version(),
    }  # fmt: skip


class Run:
    """`run.json` (the configuration), `log.jsonl`, `checkpoint-*.safetensors`, and the finished model beside them."""

    def __init__(self, folder: str | Path):
        self.folder, self.stopwatch = Path(folder), Stopwatch()

    @property
    def finished(self) -> bool:
        return all((self.folder / name).is_file() for name in ("model.safetensors", "config.json"))  # written last

    def model(self) -> VLM:
        """The trained model. Raises UserError where the run is not finished."""
        vlm = VLM.load(self.folder.resolve())  # an absolute path, as a relative one may be a built-in model's name
        vlm.name = str(self.folder)
        return vlm

    def config(self) -> dict:
        return read_json(self.folder / "run.json")

    def rows(self) -> list[dict]:
        """The log: rows {step, epoch, lr, norm, images_per_s, losses}, {step, eval} and {step, skipped}, with seconds.

        "skipped" names the non-finite losses or gradients. Seconds are those of training since the row before, without
        evaluation. A row that a crash left half written is dropped.
        """
        path, rows = self.folder / "log.jsonl", []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def losses(self) -> dict[str, list[float | None]]:
        """The log's losses as columns: "step" and one list for each term, None before the term joins."""
        rows = [row for row in self.rows() if "losses" in row]
        terms = dict.fromkeys(term for row in reversed(rows) for term in row["losses"])
        return {"step": [row["step"] for row in rows], **{t: [row["losses"].get(t) for row in rows] for t in terms}}

    def skipped_steps(self) -> int:
        """Number of steps skipped because a loss or gradient was non-finite."""
        return sum("skipped" in row for row in self.rows())

    def seconds(self) -> float:
        """Wall time of training, without evaluation, over all its sessions."""
        return sum(row.get("seconds", 0.0) for row in self.rows())

    @contextmanager
    def exclusive(self):
        """Lock the folder. Raises UserError, in all processes of this run, where another run trains in it."""
        busy = f"another process trains in {self.folder}; wait for it, or choose another folder"
        with ExitStack() as stack:
            distributed.run_on_main(lambda: bool(stack.enter_context(exclusive_lock(self.folder / ".lock", busy))))
            yield

    # --- written by the training loop ---------------------------------------------------------------------------------

    def start(self, student: VLM, config: TrainConfig, about: dict) -> int:
        """Create or reopen the folder; return the step to resume from, 0 for a new run.

        A finished run resumes from its last step. A run without any checkpoint is replaced. Raises UserError where the
        folder holds another run or a model.
        """
        new = json.loads(json.dumps({"model": student.med.config.to_dict(), "train": config.to_dict(), **about}))
        path, models = self.folder / "run.json", [name for name in MODEL_FILES if (self.folder / name).exists()]
        if models and not path.is_file():
            raise UserError(f"{self.folder} holds {models[0]} but no run to resume; choose another folder")
        resumed = path.is_file() and bool(models or self._checkpoints())
        if resumed:
            self._check_same_run(new)
        for file in (file for name in RUN_FILES for file in leftover_temporaries(self.folder, name)):
            file.unlink()
        if not resumed:
            write_json(path, new)
        step = self._last_step(config.steps)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
        write_atomically(self.folder / "log.jsonl", lambda temporary: temporary.write_text(lines))
        self.stopwatch.read()
        return step

    def _check_same_run(self, new: dict) -> None:
        """Raise UserError where the folder holds another run than `new`; warn of inputs that changed."""
        different, changed = _differences(self.config(), new)
        if different:
            names = ", ".join(different[:MAX_NAMED_DIFFERENCES]) + ", ..." * (len(different) > MAX_NAMED_DIFFERENCES)
            raise UserError(f"{self.folder} holds a run with another {names}; choose another folder")
        for name in changed:
            warnings.warn(f"the {name} changed since the run in {self.folder} started; it is resumed", stacklevel=3)

    def _last_step(self, steps: int) -> int:
        """Step of the last undamaged checkpoint, else 0; of a finished run with an undamaged model `steps`.

        Damaged files are renamed, with a warning.
        """
        model = [self.folder / "model.safetensors"] if self.finished else []
        for path in reversed([*self._checkpoints(), *model]):
            try:
                read_tensors(path, checked=True)
                return steps if path in model else int(path.stem.rpartition("-")[2])
            except UserError as fault:
                damaged = path.rename(path.with_name(f"damaged-{path.name}"))
                warnings.warn(f"{fault}; resumed without it, the file is now {damaged.name}", stacklevel=3)
        return 0

    def _checkpoints(self) -> list[Path]:
        """The earliest first."""
        return sorted(self.folder.glob(f"checkpoint-{'[0-9]' * 8}.safetensors"))

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:08d}.safetensors"

    def log(self, row: dict) -> None:
        row = {**row, "seconds": round(self.stopwatch.read(), 3)}
        path = self.folder / "log.jsonl"
        with system_errors(path), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def save(
        self, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, scaler=None, data: dict | None = None
    ) -> None:
        """Write a checkpoint of everything that the next step depends on.

        Every process calls this, the main one writes. Random states and buffers (parts of the queue) differ between
        processes, so those of each are saved, under its rank. scaler: fp16's `torch.amp.GradScaler`. data: the data
        set's `state_dict`.
        """
        data_states = distributed.gather_to_main(data or {})
        own = {f"learner.{name}": buffer.cpu() for name, buffer in learner.named_buffers()}
        own["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            own["rng.cuda"] = torch.cuda.get_rng_state()
        parts = distributed.gather_to_main(own)
        if parts is None:
            return
        tensors = {_of_rank(rank, name): tensor for rank, part in enumerate(parts) for name, tensor in part.items()}
        tensors |= {f"learner.{name}": parameter for name, parameter in learner.named_parameters()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            os.fsync(log.fileno())  # no checkpoint is ahead of its log
        about = {"step": step, "processes": len(parts), "scaler": scaler and scaler.state_dict()}
        about |= {"data": data_states} if any(data_states) else {}
        write_tensors(self._checkpoint(step), tensors, about | {"run": self._config_hash()})
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def restore(self, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, scaler=None) -> dict:
        """Load what `save` wrote, in every process its own part; return the random states and that of the "data".

        Raises UserError where the checkpoint is of another run or another number of processes.
        """
        path, rank = self._checkpoint(step), distributed.rank()
        tensors, about = read_tensors(path)
        with checkpoint_errors(path):
            with distributed.raised_by_all():
                if about["processes"] != distributed.world_size():
                    raise UserError(
                        f"{path} was written by {about['processes']} processes, not {distributed.world_size()}; resume "
                        f"the run with as many"
                    )
            if (about["step"], about["run"]) != (step, self._config_hash()):
                raise UserError(f"{path} belongs to another run or step; remove it, or choose another folder")
            with torch.no_grad():
                for name, parameter in learner.named_parameters():
                    parameter.copy_(tensors[f"learner.{name}"])
                for name, buffer in learner.named_buffers():
                    buffer.copy_(tensors[_of_rank(rank, f"learner.{name}")])
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name in (name for name in tensors if name.startswith("optimizer.")):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensors[name]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            if scaler and about["scaler"]:
                scaler.load_state_dict(about["scaler"])
            states = {"cpu": tensors[_of_rank(rank, "rng.cpu")]}
            if (cuda := tensors.get(_of_rank(rank, "rng.cuda"))) is not None:
                states["cuda"] = cuda
            return states | {"data": about["data"][rank] if "data" in about else {}}

    def finish(self, student: VLM) -> None:
        save_model(student.med, student.tokenizer, self.folder, extra={"run": self.config()})

    def _config_hash(self) -> str:
        """SHA-256 of run.json, which is written once."""
        return hashlib.sha256((self.folder / "run.json").read_bytes()).hexdigest()


class Stopwatch:
    """Measures seconds between readings, without those in which it is paused."""

    def __init__(self):
        self._started = time.perf_counter()

    def read(self) -> float:
        """Seconds since the last reading, at first since it was made."""
        before, self._started = self._started, time.perf_counter()
        return self._started - before

    @contextmanager
    def paused(self):
        paused = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Set torch's random states, by device."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _differences(old: dict, new: dict) -> tuple[list[str], list[str]]:
    """What makes `new` another run than `old`, and which changeable inputs changed, as messages name them."""
    old_inputs, new_inputs = (run.get("inputs", {}) for run in (old, new))
    changed = {name for name in old_inputs if old_inputs[name] != new_inputs.get(name)}
    same = {name for name in {*old_inputs} - changed if old_inputs[name]}
    ignored = {f"train.{name}" for name in CHANGEABLE_OPTIONS}
    ignored |= {key for key, name in INPUT_OF_NAME.items() if name in same}
    # the name and the evaluation of a run change nothing of its training
    defaults = {"model": ModelConfig().to_dict(), "train": TrainConfig().to_dict()}  # an old run lacks newer options
    old, new = (
        _flat({**run, **{part: values | run.get(part, {}) for part, values in defaults.items()},
               "inputs": None, "name": None, "evaluation": None})
        for run in (old, new)
    )  # fmt: skip
    different = sorted(name for name in {*old, *new} - ignored if old.get(name) != new.get(name))
    different += [text for name, text in FIXED_INPUTS.items() if name in changed]
    return different, [text for name, text in CHANGEABLE_INPUTS.items() if name in changed]


def _flat(config: dict) -> dict:
    """A configuration by dotted keys down to the second level, such as train.steps."""
    return {
        f"{part}.{name}" if name else part: value
        for part, values in config.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _of_rank(rank: int, name: str) -> str:
    """Name in a checkpoint of a tensor that each process has its own of."""
    return f"{rank}.{name}" if rank else name
