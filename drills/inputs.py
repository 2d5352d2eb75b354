"""Thousands of malformed inputs: each is used, skipped by name, or refused in one line, in bounded time and memory.

A batch makes inputs of one kind from a seed, in a process of limited memory. `python -m drills.inputs KIND SEED` runs
one batch alone and prints its outcomes.
"""

import contextlib
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import dlip
from dlip import cli, data, records
from dlip.checkpoints.load import BUILT_IN
from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.workers import work
from drills import junk, junk_models

BATCH_SECONDS = 180
MEMORY = 6 * 2**30
"""Bytes of address space of a process."""
MAX_MESSAGE = 1000
"""Characters of an error message."""
INPUTS_PER_ROUND = 200
"""About how many inputs the batches of all kinds have."""
STUDENT = BUILT_IN / "scenes" / "student"
TRAIN = ["train", "--size", "scenes-student", "--tokenizer", "scenes/teacher", "--limit", "4", "--test-limit", "2"]
TRAIN += ["--steps", "1", "--batch-size", "4", "--warmup", "0", "--weights", "itc,vqa", "--json", "-"]
"""A run of one step."""
RUNS = tempfile.TemporaryDirectory()
"""Folder of the run that `runs` copies."""


def outcome_of(call) -> str:
    """ "used", "refused", or a sentence about what was wrong."""
    try:
        call()
    except UserError as refusal:
        if isinstance(refusal.__cause__, MemoryError):
            return "out of memory"
        return message_fault(str(refusal)) or "refused"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:150]!r} at {Path(place.filename).name}:{place.lineno}"
    return "used"


def message_fault(message: str) -> str | None:
    """What is wrong with an error message that is not one printable line of bounded length."""
    if len(message) > MAX_MESSAGE:
        return f"an error message of {len(message):,} characters: {message[:80]!r}"
    if any(not (c.isprintable() or c.isspace()) or c in "\n\r" for c in message):
        return f"an error message that is not one printable line: {message[:300]!r}"
    return None


def outcome_of_command(words: list[str]) -> str:
    """As `outcome_of`, of a `dlip` command in this process; "skipped" if `data check` lists faults."""
    out, err, code = io.StringIO(), io.StringIO(), None

    def call() -> None:
        nonlocal code
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            code = cli.main(words)

    if (outcome := outcome_of(call)) != "used":
        return f"{words}: {outcome}"
    if code == 0:
        return "skipped" if words[:2] == ["data", "check"] and not json.loads(out.getvalue())["ok"] else "used"
    messages = [line for line in err.getvalue().splitlines() if line.startswith("dlip: ")]
    if code != 2 or not messages:
        return f"{words} ended with {code}: {err.getvalue()[-200:]!r}"
    return message_fault(messages[-1]) or "refused"


# --- the kinds: each makes inputs from a seed and yields their outcomes -----------------------------------------------


def images(rng: random.Random, folder: Path):
    (folder / "images").mkdir()
    endings = ".png", ".jpg", ".gif", ".webp", "", ".txt", ".JPG"
    names = ["good.png", *(f"{i}{rng.choice(endings)}" for i in range(24))]
    (folder / "images" / names[0]).write_bytes(_good_png())
    for name in names[1:]:
        junk.place_image(rng, folder / "images" / name)
    rows = [{"filename": name, "split": "train", "sentences": [{"raw": "a thing"}]} for name in names]
    (folder / "captions.json").write_text(json.dumps({"images": rows}))
    dataset = data.open(folder, "train", on_error="skip")
    dataset.check_images()
    kept = {about.name: i for i, about in enumerate(dataset.annotations)}
    if names[0] not in kept:
        yield "the good image was skipped"
    for name in names[1:]:
        if name in kept:
            outcome = outcome_of(lambda name=name: _student().image_states([dataset[kept[name]].image]))
            yield outcome if outcome != "refused" else f"{name} passed verify and was then refused"
        else:
            faults = [fault for fault in dataset.faults if fault.startswith(f"{name} ")]
            yield "skipped" if len(faults) == 1 and not message_fault(faults[0]) else f"{name} has the faults {faults}"


def annotations(rng: random.Random, folder: Path):
    source, shards = folder / "data", folder / "shards"
    write_folder(source, {"train": Scenes("val", size=2), "val": Scenes("val", size=2)})
    files = {name: json.loads((source / name).read_text()) for name in ("captions.json", "vqa.json")}
    for _ in range(20):
        name = rng.choice(list(files))
        (source / name).write_bytes(junk.json_bytes(rng, files[name], _value_or_name))
        yield outcome_of_command(["data", "check", str(source), "--json", "-"])
        shard = ["data", "shard", str(source), "--out", str(shards), "--on-error", "skip"]
        yield outcome_of_command([*shard, "--json", "-"])
        if outside := {path.name for path in folder.iterdir()} - {"data", "shards"}:
            yield f"shards were written outside of their folder: {outside}"
        shutil.rmtree(shards, ignore_errors=True)
        (source / name).write_text(json.dumps(files[name]))


def layouts(rng: random.Random, folder: Path):
    """Annotation files of published data sets."""
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(_good_png())
    image = {"id": 1, "file_name": "a.png", "image_id": 1, "filename": "a.png", "cocoid": 1}
    coco = {"images": [image], "annotations": [{"id": 1, "image_id": 1, "caption": "a thing"}]}
    karpathy = {"images": [image | {"split": "train", "sentences": [{"raw": "a thing"}]}]}
    questions = {"questions": [{"image_id": 1, "question_id": 1, "question": "what?"}]}
    answers = {"annotations": [{"question_id": 1, "image_id": 1, "answers": [{"answer": "a"}]}]}
    sets = (
        {"captions_train2014.json": coco}, {"dataset_coco.json": karpathy}, {"dataset_flickr30k.json": karpathy},
        {"v2_OpenEnded_mscoco_train2014_questions.json": questions, "v2_mscoco_train2014_annotations.json": answers},
        {"nocaps_val_4500_captions.json": coco},
    )  # fmt: skip
    for _ in range(20):
        files = rng.choice(sets)
        broken = rng.choice(list(files))
        for name, value in files.items():
            bad = junk.json_bytes(rng, value, _value_or_name) if name == broken else json.dumps(value).encode()
            (folder / name).write_bytes(bad)
        yield outcome_of_command(["data", "check", str(folder), "--json", "-"])
        for name in files:
            (folder / name).unlink()


def shards(rng: random.Random, folder: Path):
    about = {"caption": "a thing", "questions": [{"question": "what?", "answers": ["a"]}], "image_id": 7}
    for i in range(10):
        path = folder / f"train-{i:06}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(6):
                stem = rng.choice([f"{number:04}"] * 4 + [junk.text(rng)[:60], rng.choice(junk.NAMES)])
                _add_member(rng, tar, f"{stem}.png", junk.image_bytes(rng))
                _add_member(rng, tar, f"{stem}.json", junk.json_bytes(rng, about))
        if rng.random() < 0.4:
            path.write_bytes(junk.damaged(rng, path.read_bytes()))
        yield outcome_of_command(["data", "check", str(path), "--json", "-"])
        path.unlink()


def hub(rng: random.Random, folder: Path):
    """Parquet tables of images and texts, as the hub's data sets are."""
    datasets.config.HF_DATASETS_CACHE = str(folder / "arrow")
    for i in range(10):
        rows = []
        for _ in range(6):
            text, name = (s.encode(errors="replace").decode() for s in (junk.text(rng), rng.choice(junk.NAMES)))
            file = {"bytes": rng.choice((junk.image_bytes(rng), None)), "path": rng.choice((None, name))}
            row = {"image": rng.choice((file, file, file["bytes"], file["path"])), "caption": text}
            rows.append(row | {"question": text, "answers": [text], "image_id": rng.randrange(4)})
        types = {column: type(rng.choice(rows)[column]) for column in rows[0]}  # one type in a column
        rows = [{column: v if type(v) is types[column] else None for column, v in row.items()} for row in rows]
        path = folder / f"{i}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        if rng.random() < 0.4:
            path.write_bytes(junk.damaged(rng, path.read_bytes()))
        yield outcome_of_command(["data", "check", f"hub:{path}", "--json", "-"])


def texts(rng: random.Random, folder: Path):
    vlm, image = _student(), Scenes("val", size=1)[0].image
    for _ in range(20):
        text, method = junk.text(rng), rng.choice((vlm.similarity, vlm.match, vlm.answer, vlm.top_answers))
        outcome = outcome_of(lambda method=method, text=text: method([image], [text]))
        yield outcome if outcome in ("used", "refused") else f"{method.__name__}({text[:40]!r}): {outcome}"


def checkpoints(rng: random.Random, folder: Path):
    executed, image = folder / "executed", Scenes("val", size=1)[0].image
    for i in range(10):
        model = folder / f"model-{i}"
        shutil.copytree(STUDENT, model)
        file = model / rng.choice(("config.json", "tokenizer.json", "model.safetensors"))
        content = file.read_bytes()
        bad = junk.json_bytes(rng, json.loads(content)) if file.suffix == ".json" else junk.damaged(rng, content)
        file.write_bytes(bad)
        yield outcome_of(lambda model=model: dlip.load(str(model)).caption([image]))
        shutil.rmtree(model)
        hostile = folder / rng.choice(("hostile.pth", "hostile.bin", "hostile.safetensors"))
        content = _hostile_pickle(executed)
        hostile.write_bytes(content if rng.random() < 0.7 else junk.damaged(rng, content))
        yield outcome_of(lambda hostile=hostile: dlip.load(str(hostile)))
        hostile.unlink()
    if executed.exists():
        yield "code in a checkpoint was executed"


def models(rng: random.Random, folder: Path):
    """Models in well-formed files with impossible content."""
    image, text = Scenes("val", size=1)[0].image, "a red square"

    def use(name: str) -> None:
        vlm = dlip.load(name)
        for ability, call in {"lm": vlm.caption, "itc": vlm.embed_images}.items():
            if ability in vlm.med.abilities:
                call([image])
        for ability, call in {"vqa": vlm.answer, "itm": vlm.match, "itc": vlm.similarity}.items():
            if ability in vlm.med.abilities:
                call([image], [text])

    for i in range(20):
        name = junk_models.write_model(rng, folder / str(i))
        yield outcome_of(lambda name=name: use(name))
        shutil.rmtree(folder / str(i))


def runs(rng: random.Random, folder: Path):
    """Files of a run that is resumed, and of one that another is initialized from."""
    results = ["--results", str(folder / "records.jsonl")]
    for name in ("run.json", "log.jsonl", "record.json", "config.json", "tokenizer.json"):
        run, file = folder / name, folder / name / name
        shutil.copytree(_run(), run)
        lines = file.read_text().splitlines() if name == "log.jsonl" else [file.read_text()]
        file.write_bytes(b"\n".join(junk.json_bytes(rng, json.loads(line)) for line in lines))
        checkpoint = next(run.glob("checkpoint-*"))
        if rng.random() < 0.3:
            checkpoint.write_bytes(junk.damaged(rng, checkpoint.read_bytes()))
        if rng.random() < 0.5:  # it was killed before its end
            (run / "model.safetensors").unlink()
        yield outcome_of_command([*TRAIN, "--out", str(run), *results])
        yield outcome_of_command([*TRAIN, "--out", str(folder / f"next-{name}"), "--init-from", str(run), *results])


def commands(rng: random.Random, folder: Path):
    prefixes = (
        ["evaluate", "--model"], ["data"], ["data", "check"], ["train", "--dry-run", "--size"], ["bench"], ["ablate"],
        ["train", "--dry-run", "--weights"], ["train", "--dry-run", "--joins"], ["train", "--dry-run", "--lr"],
        ["train", "--dry-run", "--steps"], ["train", "--dry-run", "--init-from"], ["train", "--dry-run", "--data"],
        ["distill", "--dry-run", "--teacher"], ["export", "--to", "onnx"], ["advise", "--results"], ["rerun"],
        ["evaluate", "--model", "scenes/student", "--data"], ["train", "--dry-run", "--split"],
    )  # fmt: skip
    for _ in range(20):
        word = rng.choice((junk.text(rng)[:3000], rng.choice(junk.NAMES), str(rng.choice(junk.NUMBERS))[:50]))
        if "\0" not in word and not any("\ud800" <= c <= "\udfff" for c in word):  # which no command line can hold
            yield outcome_of_command([*rng.choice(prefixes), word])


def record_files(rng: random.Random, folder: Path):
    record, path = json.loads((STUDENT / "record.json").read_text()), folder / "records.jsonl"
    for _ in range(20):
        bad = junk.json_bytes(rng, record).replace(b"\n", b" ")
        path.write_bytes(json.dumps(record).encode() + b"\n" + bad + b"\n")
        with warnings.catch_warnings(record=True):
            yield outcome_of_command(["advise", "--max-params", "9", "--results", str(path)])
            yield outcome_of(lambda: records.summary(records.load(path)))


KINDS = {
    "images": images, "annotations": annotations, "layouts": layouts, "shards": shards, "hub": hub, "texts": texts,
    "checkpoints": checkpoints, "models": models, "runs": runs, "commands": commands, "records": record_files,
}  # fmt: skip


def _value_or_name(rng: random.Random):
    return rng.choice(junk.NAMES) if rng.random() < 0.3 else junk.value(rng)


@cache
def _student():
    return dlip.load("scenes/student")


@cache
def _run() -> Path:
    """Folder of a finished run."""
    folder = Path(RUNS.name, "run")
    outcome = outcome_of_command([*TRAIN, "--out", str(folder), "--results", str(folder / "records.jsonl")])
    if outcome != "used":
        raise RuntimeError(outcome)
    return folder


def _good_png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(Scenes("val", size=1)[0].image).save(out, "PNG")
    return out.getvalue()


def _add_member(rng: random.Random, tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    if rng.random() < 0.15:
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
        member.linkname, member.size = "/etc/passwd", 0
    with contextlib.suppress(ValueError, UnicodeError):  # names that no tar can hold
        tar.addfile(member, io.BytesIO(content))


def _hostile_pickle(target: Path) -> bytes:
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    return pickle.dumps({"model": Hostile()})


# --- running the batches ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    kind: str
    seed: int
    results: Path

    def outcomes(self, folder: str) -> list[str]:
        return list(KINDS[self.kind](random.Random(f"{self.kind} {self.seed}"), Path(folder)))


def run_batch(batch: Batch) -> None:
    """Append a batch's outcomes as a line to `batch.results`; the process exits if it takes too long."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.dump_traceback_later(BATCH_SECONDS, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLIP_CACHE"] = f"{folder}/cache"
        outcomes = batch.outcomes(folder)
    faulthandler.cancel_dump_traceback_later()
    with open(batch.results, "a") as file:
        file.write(json.dumps({"kind": batch.kind, "seed": batch.seed, "outcomes": outcomes}) + "\n")


def run(times: int = 5000, seed: int = 0, workers: int = 2) -> tuple[dict, dict, list[str]]:
    """Return settings, the number of each outcome by kind, and faults. times: about how many inputs."""
    counts, faults = {kind: Counter() for kind in KINDS}, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rounds = -(-times // INPUTS_PER_ROUND)
        batches = [Batch(kind, seed + i, root / f"{kind}.jsonl") for i in range(rounds) for kind in KINDS]
        for batch, reason in work(run_batch, batches, workers, root, lambda running: None):
            if reason is not None:
                faults.append(f"{batch.kind} {batch.seed}: {reason}")
        for file in root.glob("*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                for outcome in line["outcomes"]:
                    good = outcome in ("used", "skipped", "refused")
                    counts[line["kind"]][outcome if good else "wrong"] += 1
                    faults += [] if good else [f"{line['kind']} {line['seed']}: {outcome}"]
    total = sum(counter.total() for counter in counts.values())
    return {"inputs": total, "seed": seed}, {kind: dict(counter) for kind, counter in counts.items()}, faults


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(*Batch(sys.argv[1], int(sys.argv[2]), Path()).outcomes(folder), sep="\n")
