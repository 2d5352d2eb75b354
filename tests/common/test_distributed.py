"""Two processes train as one does: equal losses, gradients and checkpoints; they wait and fail together."""

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

from dlip import records
from dlip.checkpoints.tensors import read_tensors
from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.data.collate import Collate
from dlip.data.dataset import FirstN
from dlip.data.folders.dataset import Folder
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.config import DataConfig, ExperimentConfig, HeldOutConfig
from dlip.experiments.run import run
from dlip.losses.contrastive import NO_ID
from dlip.models.config import scenes_size
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.loop import train
from dlip.training.run_folder import Run
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.training.helpers import untimed_rows

AT, HR, KD, VLP = weights("at"), weights("hr"), weights("kd"), weights("vlp")
TRAIN = Scenes("train-small", size=24)
ALL_TERMS = TrainConfig(
    weights={**VLP, "tags": 1.0, **HR, **AT, **KD}, momentum=0.9, queue=8, center_states=True, batch_size=8, questions=2
)
WITHOUT_QUEUE = replace(ALL_TERMS, momentum=0.0, queue=0)
FOREIGN = replace(WITHOUT_QUEUE, weights={"itm": 1.0, "hr.image": 1.0, "hr.text": 1.0, "kd.itc": 1.0, "kd.itm": 1.0})
"""Of a teacher of another vocabulary."""
STEP_CONFIGS = {"all": ALL_TERMS, "without queue": WITHOUT_QUEUE, "another vocabulary": FOREIGN}
RUN = TrainConfig(
    steps=4, batch_size=8, lr=1e-3, warmup=2, log_every=1, save_every=2, accumulate=2, precision="fp32",
    weights={**VLP, "tags": 1.0, **HR, "kd.itm": 1.0},
)  # fmt: skip
QUEUED_RUN = RUN.replace(momentum=0.9, queue=12, eval_every=3)
RECORDED = ExperimentConfig(
    "scenes-student:image_layers=1,text_layers=2", tokenizer="scenes/teacher", data=DataConfig(limit=8),
    train=RUN.replace(steps=2, weights={"itc": 1.0}), evaluation=HeldOutConfig(limit=4, latency_repeats=0),
)  # fmt: skip
MUON_RUN = RUN.replace(optimizer="muon")


def make_models(**changes) -> tuple[VLM, VLM]:
    """A student, with these changes of its configuration, and its teacher: the same in every process."""
    texts = [text for i in range(8) for text in TRAIN[i].captions]
    tokenizer, models = Tokenizer.train(texts, 120), []
    for seed, width in ((1, 16), (0, 32)):
        torch.manual_seed(seed)
        med = Med(scenes_size(width, 1, 2, vocab_size=len(tokenizer)))
        for name, parameter in med.named_parameters():
            if name != "temp":
                parameter.data += 0.2 * torch.randn_like(parameter)
        models.append(VLM(med, tokenizer))
    student, teacher = models
    med = Med(replace(student.med.config, **changes))
    med.load_state_dict(student.med.state_dict())
    return VLM(med, tokenizer), teacher


def mixed_items() -> list:
    """Eight images: some without captions, some without questions, the second half without any question."""
    items = [TRAIN[i] for i in range(8)]
    for i in (1, 6, 7):
        items[i] = replace(items[i], captions=[])
    for i in (0, 4, 5, 6, 7):
        items[i] = replace(items[i], questions=[])
    return items


def one_step(config: TrainConfig, rank: int = 0, world_size: int = 1) -> dict:
    """Losses, gradients and the queue's ids after one step on this process's part of `mixed_items`."""
    student, teacher = make_models()
    if config is FOREIGN:
        texts = [text[::-1] for i in range(8) for text in TRAIN[i].captions]
        teacher = VLM(teacher.med, Tokenizer.train(texts, len(student.tokenizer)))
    torch.manual_seed(3)
    queue = torch.nn.functional.normalize(torch.randn(2, 8, 64), dim=-1)
    part = slice(8 // world_size * rank, 8 // world_size * (rank + 1))
    learner = Learner(student, teacher, config, TRAIN[0].tags.shape[1]).train()
    torch.manual_seed(4)
    for name, parameter in learner.named_parameters():
        if name.startswith("terms.") and parameter.requires_grad:
            parameter.data = 0.2 * torch.randn_like(parameter)
    if config.momentum:
        learner.terms["itc"].momentum.images.copy_(queue[0, part])
        learner.terms["itc"].momentum.texts.copy_(queue[1, part])
    batch = Collate(student.tokenizer, 48, 40, questions=config.questions)(mixed_items()[part])
    model = learner
    if world_size > 1:
        model = DistributedDataParallel(learner, find_unused_parameters=True, broadcast_buffers=False)
    torch.manual_seed(7)
    losses = model(batch, Teacher(teacher.med), 0, 0.5)
    sum(losses.values()).backward()
    result = {"losses": {term: loss.item() for term, loss in losses.items()}, "tokens": batch.ids.shape[1]}
    result["gradients"] = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    if config.momentum:
        learner.terms["itc"].momentum.update(learner.med)
        result["queue"] = learner.terms["itc"].momentum.ids.tolist()
    return result


def train_queued(folder: Path, config: TrainConfig = QUEUED_RUN, evaluate=None) -> Run:
    """A run with dropout, of which each process draws its own."""
    student, teacher = make_models(dropout=0.1)
    return train(student, TRAIN, config, folder, teacher, evaluate, progress=False)


def stop(vlm: VLM) -> dict:
    raise UserError("stopped")


def run_process(rank: int, folder: Path, port: int) -> None:
    """What each of two processes does; it writes its results to `folder`/RANK.pt."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group("gloo")
    results = {name: one_step(config, rank, 2) for name, config in STEP_CONFIGS.items()}
    distributed.join()
    images = Folder(folder / "images", "train", "skip")
    results["checked"] = checked = []
    images.image_fault = lambda i: checked.append(i) or ("faulty" if i == 1 else None)
    images.verify()
    results["kept"] = len(images)
    run(RECORDED, folder / "recorded", folder / "records.jsonl", progress=False)
    student, teacher = make_models()
    train(student, TRAIN, RUN, folder / "plain", teacher, progress=False)
    student, teacher = make_models()
    train(student, TRAIN, MUON_RUN, folder / "muon", teacher, progress=False)
    with pytest.raises(UserError, match="stopped"):
        train_queued(folder / "resumed", evaluate=stop)
    for name in ("resumed", "uninterrupted"):
        torch.manual_seed(99 + rank)
        train_queued(folder / name, evaluate=lambda vlm: {})
    errors = []
    for changes in (dict(steps=9), dict(batch_size=10), dict(queue=13)):
        with pytest.raises(UserError) as error:
            train_queued(folder / "uninterrupted", QUEUED_RUN.replace(**changes))
        errors.append(str(error.value))
    with pytest.raises(FileNotFoundError) as error:
        distributed.run_on_main(Path("/nowhere/at/all").read_text)
    errors.append(str(error.value))
    dist.destroy_process_group()
    distributed._long_timeout_group.cache_clear()
    timeout = timedelta(seconds=1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", timeout, world_size=2, rank=rank)
    start = time.perf_counter()
    results["waited"] = distributed.run_on_main(lambda: time.sleep(2) or rank), time.perf_counter() - start
    torch.save({**results, "errors": errors}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder of two processes, and the results of each."""
    folder = tmp_path_factory.mktemp("two")
    write_folder(folder / "images", {"train": FirstN(TRAIN, 3)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(run_process, (folder, port), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_one_process_checks_the_images_of_all(two_processes):
    assert [(sorted(part["checked"]), part["kept"]) for part in two_processes[1]] == [([0, 1, 2], 2), ([], 2)]


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEP_CONFIGS)
def test_losses_and_gradients_equal_those_of_one_process(name, two_processes):
    """Of every term, though rows lack captions or questions, and not equally many in the two processes."""
    whole, parts = one_step(STEP_CONFIGS[name]), [part[name] for part in two_processes[1]]
    assert parts[0]["tokens"] != parts[1]["tokens"]
    for term, loss in whole["losses"].items():
        assert sum(part["losses"][term] for part in parts) / 2 == pytest.approx(loss, abs=1e-5), term
        assert loss > 1e-3, term
    assert parts[0]["gradients"].keys() == whole["gradients"].keys()
    for parameter, gradient in whole["gradients"].items():
        for part in parts:
            torch.testing.assert_close(part["gradients"][parameter], gradient, atol=1e-5, rtol=1e-4, msg=parameter)


def test_processes_leave_one_record(two_processes):
    assert len(records.read(two_processes[0] / "records.jsonl")) == 1


def test_each_process_keeps_its_part_of_the_queue(two_processes):
    ids = [TRAIN[i].image_id for i in range(8)]
    assert one_step(ALL_TERMS)["queue"] == [ids[i] for i in (0, 2, 3, 4, 5)] + [NO_ID] * 3
    assert two_processes[1][0]["all"]["queue"] == [ids[i] for i in (0, 2, 3)] + [NO_ID]
    assert two_processes[1][1]["all"]["queue"] == [ids[4], ids[5], NO_ID, NO_ID]


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config"), [("plain", RUN), ("muon", MUON_RUN)])
def test_run_equals_that_of_one_process(name, config, two_processes, tmp_path):
    """Also the hard negatives, which the main process draws from the global batch."""
    student, teacher = make_models()
    single = train(student, TRAIN, config, tmp_path, teacher, progress=False).losses()
    double = Run(two_processes[0] / name).losses()
    assert double["step"] == single["step"] == [1, 2, 3, 4]
    for term, values in single.items():
        assert double[term] == pytest.approx(values, abs=2e-4), term


def test_resume_is_bit_exact(two_processes):
    """With dropout and the queue, of which each process has its own part."""
    rows = {name: untimed_rows(Run(two_processes[0] / name)) for name in ("resumed", "uninterrupted")}
    assert rows["resumed"] == rows["uninterrupted"]
    assert [row["step"] for row in rows["resumed"]] == [1, 2, 3, 3, 4]
    paths = [two_processes[0] / name / "checkpoint-00000004.safetensors" for name in rows]
    (tensors, about), (expected, _) = map(read_tensors, paths)
    assert about["processes"] == 2 and tensors.keys() == expected.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], expected[name])]
    for name in ("rng.cpu", "learner.terms.itc.momentum.images", "learner.terms.itc.momentum.ids"):
        assert not torch.equal(tensors[name], tensors[f"1.{name}"]), name


def test_other_number_of_processes_is_refused(two_processes, tmp_path):
    folder = shutil.copytree(two_processes[0] / "resumed", tmp_path / "resumed")
    (folder / "config.json").unlink()  # as if it had been killed before its end
    with pytest.raises(UserError, match="checkpoint-00000004.safetensors was written by 2 processes, not 1"):
        train_queued(folder)


def test_errors_are_raised_in_all_processes(two_processes):
    for part in two_processes[1]:
        assert "holds a run with another train" in part["errors"][0]
        assert "batch_size 10 is not divisible by 4" in part["errors"][1]
        assert "queue 13 is not divisible by 2" in part["errors"][2]
        assert "/nowhere/at/all" in part["errors"][3]
    run = json.loads((two_processes[0] / "uninterrupted" / "run.json").read_text())
    assert run["train"]["steps"] == 4


def test_waiting_for_the_main_process_outlasts_the_timeout_of_a_step(two_processes):
    for part in two_processes[1]:
        result, seconds = part["waited"]
        assert result == 0 and seconds > 1.9
