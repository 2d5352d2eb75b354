"""Training and the shipped models give the same bits as when the golden values were written.

Values are compared to the bit where processor and torch are those of the golden's writing; elsewhere losses are
compared at a relative tolerance of 1e-4 and hashes are not. `python -m tests.goldens.test_goldens` writes them anew.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import pytest
import torch

from dlip.checkpoints.tensors import read_tensors
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import scenes_size
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.vlm import VLM

FOLDER = Path(__file__).parent
FULL = {"vlp": ("itc", "itm", "lm", "vqa"), "hr": ("image", "text", "fusion", "decoder")}
FULL |= {"at": ("self", "cross", "decoder_self", "decoder_cross"), "kd": ("itc", "itm", "lm", "vqa")}
TASK = dict.fromkeys(FULL["vlp"], 1.0)
PAIR = {f"{group}.{name}": 1.0 + len(name) / 10 for group in ("hr", "at", "kd") for name in FULL[group]}
STEPS = dict(precision="fp32", steps=20, batch_size=8, lr=2e-3, warmup=4, log_every=1, save_every=8)
ALONE = TrainConfig(**STEPS, weights={**TASK, "tags": 3.0}, momentum=0.9, queue=24, augment=True, accumulate=2)
DISTILLED = TrainConfig(
    **STEPS, weights={**TASK, **PAIR}, cache=True, center_states=True, learn_teacher_projection=False,
    layers={"fusion": ((-1, -1), (0, 0))}, start_term_at={"kd.lm": 5},
)  # fmt: skip
SHIPPED = [f"{data}/{name}" for data in ("scenes", "photos") for name in ("teacher", "student", "student-undistilled")]


class Interrupted(Scenes):
    """Scenes that raise KeyboardInterrupt at the 90th read, in the twelfth step."""

    reads = 0

    def __getitem__(self, i: int):
        self.reads += 1
        if self.reads == 90:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    flags = [line for line in info.read_text().splitlines() if line.startswith("flags")][:1] if info.exists() else []
    return hashlib.sha256(f"{platform.machine()} {flags} {torch.__version__}".encode()).hexdigest()


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of tensors' bits."""
    bits = hashlib.sha256()
    for tensor in tensors:
        bits.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def digest_of_all(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors' own, whatever their names."""
    return hashlib.sha256("".join(sorted(map(digest, tensors.values()))).encode()).hexdigest()


def model(width: int, seed: int) -> VLM:
    """A tiny model with random weights, the vocabulary that of the scenes."""
    dataset = Scenes("train-small", size=24)
    texts = [text for item in dataset for text in item.captions]
    texts += [text for item in dataset for q in item.questions for text in (q.text, *q.answers)]
    tokenizer = Tokenizer.train(texts, 200)
    torch.manual_seed(seed)
    return VLM(Med(scenes_size(width, 2, 2, vocab_size=len(tokenizer), dropout=0.1)), tokenizer)


def contents(folder: Path) -> dict:
    """Losses of a run by step, its files, and the hashes of the tensors that it kept."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = {path.name: read_tensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}
    return {
        "losses": [row["losses"] for row in rows],
        "files": sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")),
        "hashes": {name: digest_of_all(tensors) for name, tensors in kept.items()},
    }


def alone(folder: Path) -> dict:
    train(model(32, 1), Scenes("train-small", size=24), ALONE, folder / "run", progress=False)
    return contents(folder / "run")


def distilled(folder: Path) -> dict:
    student, teacher, data = model(32, 1), model(48, 0), Scenes("train-small", size=24)
    train(student, data, DISTILLED, folder / "run", teacher, progress=False, cache=folder / "cache")
    return contents(folder / "run")


def resumed(folder: Path) -> dict:
    """As `alone`, interrupted and continued."""
    with pytest.raises(KeyboardInterrupt):
        train(model(32, 1), Interrupted("train-small", size=24), ALONE, folder / "run", progress=False)
    assert not (folder / "run" / "model.safetensors").exists()
    return alone(folder)


def shipped(folder: Path) -> dict:
    """Captions, answers and scores of every shipped model on 16 scenes."""
    items, outputs = [Scenes("test", size=16)[i] for i in range(16)], {}
    images, texts = [item.image for item in items], [item.captions[0] for item in items]
    for name in SHIPPED:
        vlm = VLM.load(name)
        similarity = [vlm.similarity(part, texts) for part in (images[:8], images[8:])]  # batches of one size: one sum
        outputs[name] = {"captions": vlm.caption(images), "similarity": digest(*similarity)}
        if "vqa" in vlm.med.abilities:
            outputs[name]["answers"] = vlm.answer(images, [item.questions[0].text for item in items])
        if "itm" in vlm.med.abilities:
            outputs[name]["match"] = digest(vlm.match(images, texts))
    return outputs


GOLDENS = {"alone": alone, "distilled": distilled, "resumed": resumed, "shipped": shipped}


@pytest.mark.parametrize(
    "name", ["alone", "distilled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resumed", "shipped"))]
)
def test_results_are_the_golden_ones(name, tmp_path):
    expected, threads = json.loads((FOLDER / f"{name}.json").read_text()), torch.get_num_threads()
    torch.set_num_threads(1)
    actual = GOLDENS[name](tmp_path)
    torch.set_num_threads(threads)
    if expected["processor"] == processor():
        assert actual == expected["values"]
    elif "losses" in actual:
        assert actual["files"] == expected["values"]["files"]
        for step, losses in zip(actual["losses"], expected["values"]["losses"], strict=True):
            assert step == pytest.approx(losses, rel=1e-4)


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or GOLDENS:
        with TemporaryDirectory() as temporary:
            values = {"processor": processor(), "values": GOLDENS[chosen](Path(temporary))}
        (FOLDER / f"{chosen}.json").write_text(json.dumps(values, indent=1) + "\n")
