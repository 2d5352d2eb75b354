"""A run's folder: its configuration, its log, its checkpoints, and in the end its model."""

import json
import time
from pathlib import Path

import torch
from torch import nn

from dlip.checkpoints import read_json, read_tensors, save_model, write_atomically, write_json, write_tensors
from dlip.config import TrainConfig
from dlip.errors import UserError
from dlip.vlm import VLM

KEEP = 2  # checkpoints


class Run:
    """`run.json` (what was asked for), `log.jsonl`, `checkpoint-*.safetensors`, and the finished model beside them."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def finished(self) -> bool:
        return (self.folder / "config.json").is_file()  # the last file that is written

    def model(self) -> VLM:
        """The trained model. Raises UserError where the run is not finished."""
        return VLM.load(self.folder)

    def config(self) -> dict:
        return read_json(self.folder / "run.json")

    def rows(self) -> list[dict]:
        """The log: rows {step, epoch, lr, norm, pictures_per_s, losses} and {step, eval}."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def losses(self) -> dict[str, list[float | None]]:
        """The log's losses as columns: "step" and one list a term, None before it joins."""
        rows = [row for row in self.rows() if "losses" in row]
        terms = dict.fromkeys(term for row in reversed(rows) for term in row["losses"])
        return {"step": [row["step"] for row in rows], **{t: [row["losses"].get(t) for row in rows] for t in terms}}

    def seconds(self) -> float:
        """Wall time spent training, over all its sessions."""
        return sum(row.get("seconds", 0.0) for row in self.rows())

    # --- written by the training loop ---------------------------------------------------------------------------------

    def start(self, student: VLM, config: TrainConfig, about: dict) -> int:
        """Starts the folder, or finds the step to resume from. Raises UserError where it holds another run."""
        asked = json.loads(json.dumps({"model": student.med.config.to_dict(), "train": config.to_dict(), **about}))
        path = self.folder / "run.json"
        held = self.config() if path.is_file() else asked
        if held != asked:
            different = sorted(k for k in {*held, *asked} if held.get(k) != asked.get(k))
            raise UserError(f"{self.folder} holds a run with another {', '.join(different)}; choose another folder")
        if not path.is_file():
            write_json(path, asked)
        steps = [int(p.stem.split("-")[1]) for p in self.folder.glob("checkpoint-*.safetensors")]
        start = max(steps, default=0)
        kept = [row for row in self.rows() if row["step"] <= start]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.folder / "log.jsonl", lambda temporary: temporary.write_text(lines))
        self._since = time.perf_counter()
        return start

    def log(self, row: dict) -> None:
        now = time.perf_counter()
        row = {**row, "seconds": round(now - self._since, 3)}
        self._since = now
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
        """A checkpoint of everything that the next step depends on."""
        tensors = {f"learner.{name}": tensor for name, tensor in _unique(learner).items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        write_tensors(self._checkpoint(step), tensors, {"step": step})
        for old in sorted(self.folder.glob("checkpoint-*.safetensors"))[:-KEEP]:
            old.unlink()

    def restore(self, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
        """The state that `save` kept. Raises UserError where the checkpoint is broken or of another shape."""
        path = self._checkpoint(step)
        tensors, _ = read_tensors(path)
        own = _unique(learner)
        saved = {name.removeprefix("learner."): t for name, t in tensors.items() if name.startswith("learner.")}
        if saved.keys() != own.keys():
            raise UserError(f"{path} is of another model or other losses; choose another folder")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])

    def finish(self, student: VLM) -> None:
        save_model(student.med, student.tokenizer, self.folder, about={"run": self.config()})

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:08d}.safetensors"


def _unique(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
