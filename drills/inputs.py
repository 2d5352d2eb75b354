"""Thousands of bad inputs: each is used, skipped by its name, or refused in one sentence, soon and in bounded memory.

Inputs come in batches of one kind, a seed each, in processes whose memory is limited; one that hangs or dies is
named by its seed, and `python -m drills.inputs KIND SEED` does that batch alone.
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

import dlip
from dlip import cli, data, records
from dlip.checkpoints.load import BUILT_IN
from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.workers import work
from drills import junk, junk_models

SECONDS = 180
"""That one batch may take, on a slow machine beside other work."""
MEMORY = 6 * 2**30
"""Bytes of addresses that a process may have."""
TRAIN = ["train", "--size", "scenes-student", "--tokenizer", "scenes/teacher", "--limit", "4", "--test-limit", "2"]
TRAIN += ["--steps", "1", "--batch-size", "4", "--warmup", "0", "--weights", "itc,vqa", "--json", "-"]
"""A run as short as there can be."""
keeps: list[tempfile.TemporaryDirectory] = []
"""Of this process."""
SENTENCE = 1000
"""Characters of a refusal at most."""


def tried(call) -> str:
    """ "used", "refused", or what was wrong."""
    try:
        call()
    except UserError as refusal:
        greedy = isinstance(refusal.__cause__, MemoryError)
        return "out of memory" if greedy else untidy(str(refusal)) or "refused"
    except Exception as fault:
        place = traceback.extract_tb(fault.__traceback__)[-1]
        return f"{type(fault).__name__}: {str(fault)[:150]!r} at {Path(place.filename).name}:{place.lineno}"
    return "used"


def untidy(sentence: str) -> str | None:
    """What is wrong with a refusal, if anything: it is one line that a terminal can show."""
    if len(sentence) > SENTENCE:
        return f"a refusal of {len(sentence):,} characters: {sentence[:80]!r}"
    if any(not (c.isprintable() or c.isspace()) or c in "\n\r" for c in sentence):
        return f"a refusal that is no line: {sentence[:300]!r}"
    return None


def commanded(words: list[str]) -> str:
    """A command, in this process: as `tried`, by what it ends with and what it says; "skipped" where `data check` has
    found faults."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            code = cli.main(words)
    except SystemExit as end:  # of the parser, whose usage stands before its sentence
        code = end.code
    except Exception as fault:
        return f"{words}: {tried(lambda fault=fault: (_ for _ in ()).throw(fault))}"
    lines = [line for line in err.getvalue().splitlines() if line.startswith("dlip: ")]
    if code == 0:
        checked = words[:2] == ["data", "check"]
        return "skipped" if checked and not json.loads(out.getvalue())["ok"] else "used"
    if code != 2 or not err.getvalue().strip():
        return f"{words} ended with {code}: {err.getvalue()[-200:]!r}"
    return untidy(lines[-1]) if lines and untidy(lines[-1]) else "refused"


# --- the kinds: each makes inputs from a seed and yields what became of each ------------------------------------------


def pictures(rng: random.Random, folder: Path):
    (folder / "images").mkdir()
    good = "good.png"
    names = [good] + [f"{i}{rng.choice(('.png', '.jpg', '.gif', '.webp', '', '.txt', '.JPG'))}" for i in range(24)]
    (folder / "images" / good).write_bytes(_whole())
    for name in names[1:]:
        junk.put(rng, folder / "images" / name)
    rows = [{"filename": name, "split": "train", "sentences": [{"raw": "a thing"}]} for name in names]
    (folder / "captions.json").write_text(json.dumps({"images": rows}))
    found = data.open(folder, "train", on_error="skip")
    found.verify()
    used = {record.name: i for i, record in enumerate(found.records)}
    vlm = _student()
    yield "used" if good in used else "the good picture was not used"
    for name in names[1:]:
        told = [problem for problem in found.faults if problem.startswith(f"{name} ")]
        if name in used:
            kept = tried(lambda name=name: vlm.pixels([found[used[name]].image]))
            yield kept if kept != "refused" else f"{name} was verified and then refused"
        elif len(told) != 1 or untidy(told[0]):
            yield f"{name} was skipped with {[t[:200] for t in told]}"
        else:
            yield "skipped"


def annotations(rng: random.Random, folder: Path):
    write_folder(folder / "d", {"train": _few(), "val": _few()})
    files = {name: json.loads((folder / "d" / name).read_text()) for name in ("captions.json", "vqa.json")}
    for _ in range(20):
        name = rng.choice(list(files))
        (folder / "d" / name).write_bytes(junk.written(rng, files[name], _value_or_name))
        yield commanded(["data", "check", str(folder / "d"), "--json", "-"])
        shards = ["data", "shard", str(folder / "d"), "--out", str(folder / "shards"), "--on-error", "skip"]
        yield commanded([*shards, "--json", "-"])
        if beside := {path.name for path in folder.iterdir()} - {"d", "shards"}:
            yield f"shards were written beside their folder: {beside}"
        shutil.rmtree(folder / "shards", ignore_errors=True)
        (folder / "d" / name).write_text(json.dumps(files[name]))


def layouts(rng: random.Random, folder: Path):
    """Files of published data sets, by their names."""
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(_whole())
    image = {"id": 1, "file_name": "a.png", "image_id": 1, "filename": "a.png", "cocoid": 1}
    coco = {"images": [image], "annotations": [{"id": 1, "image_id": 1, "caption": "a thing"}]}
    karpathy = {"images": [image | {"split": "train", "sentences": [{"raw": "a thing"}]}]}
    asked = {"questions": [{"image_id": 1, "question_id": 1, "question": "what?"}]}
    said = {"annotations": [{"question_id": 1, "image_id": 1, "answers": [{"answer": "a"}]}]}
    sets = (
        {"captions_train2014.json": coco}, {"dataset_coco.json": karpathy}, {"dataset_flickr30k.json": karpathy},
        {"v2_OpenEnded_mscoco_train2014_questions.json": asked, "v2_mscoco_train2014_annotations.json": said},
        {"nocaps_val_4500_captions.json": coco},
    )  # fmt: skip
    for _ in range(20):
        files = rng.choice(sets)
        broken = rng.choice(list(files))
        for name, value in files.items():
            bad = junk.written(rng, value, _value_or_name) if name == broken else json.dumps(value).encode()
            (folder / name).write_bytes(bad)
        yield commanded(["data", "check", str(folder), "--json", "-"])
        for name in files:
            (folder / name).unlink()


def shards(rng: random.Random, folder: Path):
    for i in range(10):
        path = folder / f"train-{i:06}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(6):
                stem = junk.text(rng)[:60] if rng.random() < 0.3 else f"{number:04}"
                stem = rng.choice(junk.NAMES) if rng.random() < 0.2 else stem
                about = {"caption": "a thing", "questions": [{"question": "what?", "answers": ["a"]}], "image_id": 7}
                _add(rng, tar, f"{stem}.png", junk.picture(rng))
                _add(rng, tar, f"{stem}.json", junk.written(rng, about))
        if rng.random() < 0.4:
            path.write_bytes(junk.damaged(rng, path.read_bytes()))
        yield commanded(["data", "check", str(path), "--json", "-"])
        path.unlink()


def hub(rng: random.Random, folder: Path):
    """Tables of pictures and texts, as the hub's data sets are."""
    datasets.config.HF_DATASETS_CACHE = str(folder / "arrow")
    for i in range(10):
        rows = []
        for _ in range(6):
            said, name = (words.encode(errors="replace").decode() for words in (junk.text(rng), rng.choice(junk.NAMES)))
            file = {"bytes": rng.choice((junk.picture(rng), None)), "path": rng.choice((None, name))}
            row = {"image": rng.choice((file, file, file["bytes"], file["path"])), "caption": said}
            rows.append(row | {"question": said, "answers": [said], "image_id": rng.randrange(4)})
        kinds = {column: rng.choice(rows)[column] for column in rows[0]}  # a column has one kind
        rows = [{c: v if type(v) is type(kinds[c]) else None for c, v in row.items()} for row in rows]
        path = folder / f"{i}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        if rng.random() < 0.4:
            path.write_bytes(junk.damaged(rng, path.read_bytes()))
        yield commanded(["data", "check", f"hub:{path}", "--json", "-"])


def texts(rng: random.Random, folder: Path):
    vlm, picture = _student(), Scenes("val", size=1)[0].image
    for _ in range(20):
        words = junk.text(rng)
        way = rng.choice((vlm.similarity, vlm.match, vlm.answer, vlm.answers))
        outcome = tried(lambda way=way, words=words: way([picture], [words]))
        yield outcome if outcome in ("used", "refused") else f"{way.__name__}({words[:40]!r}): {outcome}"


def checkpoints(rng: random.Random, folder: Path):
    source = BUILT_IN / "scenes" / "student"
    evil = folder / "ran"
    for i in range(10):
        model = folder / f"model-{i}"
        shutil.copytree(source, model)
        name = rng.choice(("config.json", "tokenizer.json", "model.safetensors"))
        file = model / name
        if name.endswith(".json"):
            file.write_bytes(junk.written(rng, json.loads(file.read_text())))
        else:
            file.write_bytes(junk.damaged(rng, file.read_bytes()))
        yield tried(lambda model=model: dlip.load(str(model)).caption([Scenes("val", size=1)[0].image]))
        shutil.rmtree(model)
        hostile = folder / rng.choice(("evil.pth", "evil.bin", "evil.safetensors"))
        hostile.write_bytes(_pickled(evil) if rng.random() < 0.7 else junk.damaged(rng, _pickled(evil)))
        yield tried(lambda hostile=hostile: dlip.load(str(hostile)))
        hostile.unlink()
    if evil.exists():
        yield "code in a checkpoint was run"


def models(rng: random.Random, folder: Path):
    """Whose files can be read, and whose content is wrong."""
    image, said = Scenes("val", size=1)[0].image, "a red square"

    def use(name: str) -> None:
        vlm = dlip.load(name)
        able = vlm.med.abilities
        for task, call in {"lm": vlm.caption, "itc": vlm.embed_images}.items():
            able & {task} and call([image])
        for task, call in {"vqa": vlm.answer, "itm": vlm.match, "itc": vlm.similarity}.items():
            able & {task} and call([image], [said])

    for i in range(20):
        name = junk_models.model(rng, folder / str(i))
        yield tried(lambda name=name: use(name))
        shutil.rmtree(folder / str(i))


def runs(rng: random.Random, folder: Path):
    """The files of a run that goes on, and of one that another begins at."""
    for name in ("run.json", "log.jsonl", "record.json", "config.json", "tokenizer.json"):
        run, file = folder / name, folder / name / name
        shutil.copytree(_run(), run)
        lines = file.read_text().splitlines() if name == "log.jsonl" else [file.read_text()]
        file.write_bytes(b"\n".join(junk.written(rng, json.loads(line)) for line in lines))
        last = next(run.glob("checkpoint-*"))
        last.write_bytes(junk.damaged(rng, last.read_bytes()) if rng.random() < 0.3 else last.read_bytes())
        if rng.random() < 0.5:  # it was killed before its end
            (run / "model.safetensors").unlink()
        results = ["--results", str(folder / "records.jsonl")]
        yield commanded([*TRAIN, "--out", str(run), *results])
        yield commanded([*TRAIN, "--out", str(folder / f"next-{name}"), "--start", str(run), *results])


def commands(rng: random.Random, folder: Path):
    bare = (
        ["evaluate", "--model"], ["data"], ["data", "check"], ["train", "--dry-run", "--size"], ["bench"], ["ablate"],
        ["train", "--dry-run", "--weights"], ["train", "--dry-run", "--joins"], ["train", "--dry-run", "--lr"],
        ["train", "--dry-run", "--steps"], ["train", "--dry-run", "--start"], ["train", "--dry-run", "--data"],
        ["distill", "--dry-run", "--teacher"], ["export", "--to", "onnx"], ["advise", "--results"], ["rerun"],
        ["evaluate", "--model", "scenes/student", "--data"], ["train", "--dry-run", "--split"],
    )  # fmt: skip
    for _ in range(20):
        words = rng.choice((junk.text(rng)[:3000], rng.choice(junk.NAMES), str(rng.choice(junk.NUMBERS))[:50]))
        if "\0" not in words and not any("\ud800" <= c <= "\udfff" for c in words):  # which no command line can hold
            yield commanded([*rng.choice(bare), words])


def recorded(rng: random.Random, folder: Path):
    whole = json.loads((BUILT_IN / "scenes" / "student" / "record.json").read_text())
    path = folder / "records.jsonl"
    for _ in range(20):
        lines = [json.dumps(whole).encode(), junk.written(rng, whole).replace(b"\n", b" ")]
        path.write_bytes(b"\n".join(lines) + b"\n")
        with warnings.catch_warnings(record=True):
            yield commanded(["advise", "--max-params", "9", "--results", str(path)])
            yield tried(lambda: records.summary(records.load(path)))


KINDS = {
    "pictures": pictures, "annotations": annotations, "layouts": layouts, "shards": shards, "hub": hub, "texts": texts,
    "checkpoints": checkpoints, "models": models, "runs": runs, "commands": commands, "records": recorded,
}  # fmt: skip


def _value_or_name(rng: random.Random):
    return rng.choice(junk.NAMES) if rng.random() < 0.3 else junk.value(rng)


@cache
def _student():
    return dlip.load("scenes/student")


@cache
def _run() -> Path:
    """A run of one step."""
    keeps.append(tempfile.TemporaryDirectory())
    folder = Path(keeps[-1].name) / "run"
    if (outcome := commanded([*TRAIN, "--out", str(folder), "--results", str(folder / "records.jsonl")])) != "used":
        raise RuntimeError(outcome)
    return folder


@cache
def _few() -> Scenes:
    return Scenes("val", size=2)


def _whole() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(Scenes("val", size=1)[0].image).save(out, "PNG")
    return out.getvalue()


def _add(rng: random.Random, tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    if rng.random() < 0.15:
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
        member.linkname, member.size = "/etc/passwd", 0
    with contextlib.suppress(ValueError, UnicodeError):  # names that no tar can hold
        tar.addfile(member, io.BytesIO(content))


def _pickled(target: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    return pickle.dumps({"model": Evil()})


# --- doing them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    kind: str
    seed: int
    results: Path


def do(batch: Batch) -> None:
    """One batch, in a process of its own: what became of its inputs is a line of `results`."""
    if not getattr(do, "limited", False):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        do.limited = True
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLIP_CACHE"] = f"{folder}/cache"
        outcomes = list(KINDS[batch.kind](random.Random(f"{batch.kind} {batch.seed}"), Path(folder)))
    faulthandler.cancel_dump_traceback_later()
    with open(batch.results, "a") as file:
        file.write(json.dumps({"kind": batch.kind, "seed": batch.seed, "outcomes": outcomes}) + "\n")


def run(times: int = 5000, seed: int = 0, workers: int = 2) -> tuple[dict, dict, list[str]]:
    """Settings, how many inputs of each kind came out in which way, and what was wrong."""
    counts, faults = {kind: Counter() for kind in KINDS}, []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rounds = -(-times // 200)  # inputs in a round of all kinds
        batches = [Batch(kind, seed + i, place / f"{kind}.jsonl") for i in range(rounds) for kind in KINDS]
        for batch, reason in work(do, batches, workers, place, lambda running: None):
            if reason is not None:
                faults.append(f"{batch.kind} {batch.seed}: {reason}")
        for file in place.glob("*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                for outcome in line["outcomes"]:
                    held = outcome in ("used", "skipped", "refused")
                    counts[line["kind"]][outcome if held else "wrong"] += 1
                    faults += [] if held else [f"{line['kind']} {line['seed']}: {outcome}"]
    total = sum(sum(found.values()) for found in counts.values())
    return {"inputs": total, "seed": seed}, {kind: dict(found) for kind, found in counts.items()}, faults


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for outcome in KINDS[sys.argv[1]](random.Random(f"{sys.argv[1]} {int(sys.argv[2])}"), Path(folder)):
            print(outcome)
