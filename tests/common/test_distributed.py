"""Two processes learn what one does: the same losses, gradients and checkpoints; they wait, and fail, together."""

import json
import os
import shutil
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from dlip.checkpoints.tensors import read_tensors
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import scenes_size
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.training.distillation import Teacher
from dlip.training.learner import Learner
from dlip.training.loop import train
from dlip.training.run_folder import Run
from dlip.training.terms import AT, HR, KD, VLP
from dlip.vlm import VLM

PICTURES = Scenes("train-small", size=24)
EVERY = TrainConfig(
    weights={**VLP, "tags": 1.0, **HR, **AT, **KD}, momentum=0.9, queue=8, center_states=True, batch_size=8, questions=2
)
PLAIN = replace(EVERY, momentum=0.0, queue=0)
SHORT = TrainConfig(
    steps=4, batch_size=8, lr=1e-3, warmup=2, log_every=1, save_every=2, accumulate=2,
    weights={**VLP, "tags": 1.0, **HR, "kd.itm": 1.0},
)  # fmt: skip
QUEUED = SHORT.replace(momentum=0.9, queue=12, eval_every=3)


def models() -> tuple[VLM, VLM]:
    """A student and its teacher, the same in every process."""
    texts = [text for i in range(8) for text in PICTURES[i].captions]
    tokenizer, found = Tokenizer.train(texts, 120), []
    for seed, width in ((1, 16), (0, 32)):
        torch.manual_seed(seed)
        med = Med(scenes_size(width, 1, 2, vocab_size=len(tokenizer)))
        for name, parameter in med.named_parameters():
            if name != "temp":
                parameter.data += 0.2 * torch.randn_like(parameter)
        found.append(VLM(med, tokenizer))
    return tuple(found)


def mixed() -> list:
    """Eight pictures: some without captions, some without questions, the second half without any question."""
    items = [PICTURES[i] for i in range(8)]
    for i in (1, 6, 7):
        items[i] = replace(items[i], captions=[])
    for i in (0, 4, 5, 6, 7):
        items[i] = replace(items[i], questions=[])
    return items


def learn(config: TrainConfig, rank: int = 0, world: int = 1) -> dict:
    """Losses, gradients and the queue after one step on the `mixed` batch, of which each process has its part."""
    student, teacher = models()
    torch.manual_seed(3)
    queue = torch.nn.functional.normalize(torch.randn(2, 8, 64), dim=-1)
    share = slice(8 // world * rank, 8 // world * (rank + 1))
    learner = Learner(student, teacher, config, len(PICTURES[0].tags)).train()
    torch.manual_seed(4)
    for name, parameter in learner.named_parameters():
        if name.startswith(("tag_head", "distiller")):
            parameter.data = 0.2 * torch.randn_like(parameter)
    if config.momentum:
        learner.momentum.images.copy_(queue[0, share])
        learner.momentum.texts.copy_(queue[1, share])
    collate = Collate(student.tokenizer, 48, True, 40, questions=config.questions)
    batch = collate(mixed()[share])
    model = learner
    if world > 1:
        model = DistributedDataParallel(learner, find_unused_parameters=True, broadcast_buffers=False)
    torch.manual_seed(7)
    losses = model(batch, Teacher(teacher.med), 0, 0.5)
    sum(losses.values()).backward()
    found = {"losses": {term: loss.item() for term, loss in losses.items()}, "tokens": batch.ids.shape[1]}
    found["gradients"] = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    if config.momentum:
        learner.momentum.update(learner.med)
        found["queue"] = learner.momentum.ids.tolist()
    return found


def work(rank: int, folder: Path, port: int) -> None:
    """What each of two processes does; what it found goes into the folder."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group("gloo")
    found = {"every": learn(EVERY, rank, 2), "plain": learn(PLAIN, rank, 2)}
    student, teacher = models()
    train(student, PICTURES, SHORT, folder / "short", teacher, progress=False)
    dropout = dict(dropout=0.1)
    for name, stops in (("whole", False), ("parts", True)):
        if stops:
            with pytest.raises(UserError, match="enough"):
                train(changed(models()[0], dropout), PICTURES, QUEUED, folder / name, teacher, stop, progress=False)
        torch.manual_seed(99 + rank)
        train(changed(models()[0], dropout), PICTURES, QUEUED, folder / name, teacher, lambda _: {}, progress=False)
    mistakes = []
    for config in (QUEUED.replace(steps=9), QUEUED.replace(batch_size=10), QUEUED.replace(queue=13)):
        with pytest.raises(UserError) as mistake:
            train(changed(models()[0], dropout), PICTURES, config, folder / "whole", teacher, progress=False)
        mistakes.append(str(mistake.value))
    with pytest.raises(FileNotFoundError) as mistake:
        distributed.run_on_main(Path("/nowhere/at/all").read_text)
    mistakes.append(str(mistake.value))
    dist.destroy_process_group()
    distributed._long_timeout_group.cache_clear()
    limit = timedelta(seconds=1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", limit, world_size=2, rank=rank)
    began = time.perf_counter()
    found["waited"] = distributed.run_on_main(lambda: time.sleep(2) or rank), time.perf_counter() - began
    torch.save({**found, "mistakes": mistakes}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def changed(vlm: VLM, changes: dict) -> VLM:
    med = Med(replace(vlm.med.config, **changes))
    med.load_state_dict(vlm.med.state_dict())
    return VLM(med, vlm.tokenizer)


def stop(vlm: VLM) -> dict:
    raise UserError("enough")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder and the findings of two processes."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (folder, port), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["every", "plain"])
def test_losses_and_gradients_are_those_of_one_process(name, two):
    """Of every term, with rows that lack captions or questions, unequally many in the two processes."""
    whole, parts = learn({"every": EVERY, "plain": PLAIN}[name]), [part[name] for part in two[1]]
    assert parts[0]["tokens"] != parts[1]["tokens"]
    for term, loss in whole["losses"].items():
        assert sum(part["losses"][term] for part in parts) / 2 == pytest.approx(loss, abs=1e-5), term
        assert loss > 1e-3, term
    assert parts[0]["gradients"].keys() == whole["gradients"].keys()
    for parameter, gradient in whole["gradients"].items():
        for part in parts:
            torch.testing.assert_close(part["gradients"][parameter], gradient, atol=1e-5, rtol=1e-4, msg=parameter)


def test_each_process_keeps_its_part_of_the_queue(two):
    ids = [PICTURES[i].image_id for i in range(8)]
    assert learn(EVERY)["queue"] == [ids[i] for i in (0, 2, 3, 4, 5)] + [-1] * 3
    assert two[1][0]["every"]["queue"] == [ids[i] for i in (0, 2, 3)] + [-1]
    assert two[1][1]["every"]["queue"] == [ids[4], ids[5], -1, -1]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_goes_as_that_of_one_process(two, tmp_path):
    """Also the hard negatives, which the main process draws from the batch of both."""
    student, teacher = models()
    alone = train(student, PICTURES, SHORT, tmp_path, teacher, progress=False).losses()
    together = Run(two[0] / "short").losses()
    assert together["step"] == alone["step"] == [1, 2, 3, 4]
    for term, values in alone.items():
        assert together[term] == pytest.approx(values, abs=2e-4), term


def test_a_stopped_run_goes_on_to_the_last_bit(two):
    """With dropout, of which each process draws its own, and its part of the queue."""
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in Run(two[0] / name).rows()]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 3, 4]
    name = "checkpoint-00000004.safetensors"
    (ours, about), (theirs, _) = (read_tensors(two[0] / part / name) for part in ("parts", "whole"))
    assert about["processes"] == 2 and ours.keys() == theirs.keys()
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    for own in ("rng.cpu", "learner.momentum.images", "learner.momentum.ids"):
        assert not torch.equal(ours[own], ours[f"1.{own}"]), own


def test_another_number_of_processes_is_refused(two, tmp_path):
    teacher = models()[1]
    folder = shutil.copytree(two[0] / "parts", tmp_path / "parts")
    (folder / "config.json").unlink()  # it was killed before its end
    with pytest.raises(UserError, match="checkpoint-00000004.safetensors was written by 2 processes, not 1"):
        train(changed(models()[0], dict(dropout=0.1)), PICTURES, QUEUED, folder, teacher, progress=False)


def test_mistakes_are_told_to_all(two):
    for part in two[1]:
        assert "holds a run with another train" in part["mistakes"][0]
        assert "batch_size 10 is not divisible by 4" in part["mistakes"][1]
        assert "queue 13 is not divisible by 2" in part["mistakes"][2]
        assert "/nowhere/at/all" in part["mistakes"][3]
    assert json.loads((two[0] / "whole" / "run.json").read_text())["train"]["steps"] == 4


def test_the_others_wait_longer_than_a_step_may_take(two):
    for part in two[1]:
        result, seconds = part["waited"]
        assert result == 0 and seconds > 1.9
