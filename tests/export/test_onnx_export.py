"""ONNX graphs give torch's numbers, and their runner torch's texts without torch or this package."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dlip
from dlip.cli import main
from dlip.common.errors import MissingAbility, UserError
from dlip.common.files import read_json
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.export import onnx_export
from dlip.export.onnx_runner import Runner
from dlip.models.composite import Composite
from dlip.models.config import ModelConfig
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import randomize_weights, reuse_graphs

READER = r"""
import json, sys
sys.modules["torch"] = sys.modules["dlip"] = sys.modules["transformers"] = None  # importing them fails from here on
sys.path.insert(0, sys.argv[1])
from runner import Runner
paths, questions = json.loads(sys.argv[2]), json.loads(sys.argv[3])
runner = Runner(threads=1)
results = {f"caption {k}": runner.caption(paths, k) for k in (1, 3)}
results |= {f"answer {k}": runner.answer(paths, questions, k) for k in (1, 3)}
results["match"], results["itc"] = runner.match(paths, questions).tolist(), runner.similarity(paths, questions).tolist()
json.dump(results, sys.stdout)
"""
ENV = {"OMP_NUM_THREADS": "1", "PATH": ""}
SIZES = ((1, 3), (3, 6), (4, 11), (2, 4))
"""(images or texts, tokens)"""


def torch_outputs(vlm, paths, questions) -> dict:
    results = {f"caption {k}": vlm.caption(paths, k) for k in (1, 3)}
    return results | {f"answer {k}": vlm.answer(paths, questions, k) for k in (1, 3)}


def elsewhere(folder, paths, questions) -> dict:
    """Results of the folder's runner in a process that cannot import torch or this package."""
    arguments = [str(folder), json.dumps([str(path) for path in paths]), json.dumps(questions)]
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, env=ENV
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_equal_graphs(vlm, folder) -> None:
    part = Runner(folder, threads=1).parts[0]
    for name, of in onnx_export.GRAPHS.items():
        graph = of(vlm.med, frozenset(part.config["abilities"])).eval()
        for n, t in SIZES:
            inputs = graph.example(n, t)
            results = part.run(name, graph.outputs, **onnx_export.feed(inputs))
            with torch.no_grad():
                for expected, result in zip(graph(**inputs), results, strict=True):
                    torch.testing.assert_close(torch.from_numpy(result), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def student(exported_student, tmp_path_factory):
    """The shipped student, exported by the command, with image files and a question for each."""
    folder = tmp_path_factory.mktemp("student")
    items = list(Scenes("test", size=6))
    paths = [folder / f"{i}.png" for i in range(len(items))]
    for path, item in zip(paths, items, strict=True):
        Image.fromarray(item.image).save(path)
    return (
        dlip.load("scenes/student"),
        exported_student,
        paths,
        [item.questions[i % len(item.questions)].text for i, item in enumerate(items)],
    )


@pytest.fixture(scope="module")
def odd(tiny, tmp_path_factory):
    """Odd sizes, cross-attention in one layer of three, a bridge, a prompt, [ENC], a decoder and a head of its own."""
    folder = tmp_path_factory.mktemp("odd")
    prompt = tuple(tiny.tokenizer.encode(["a red"])[0][0, 1:-1].tolist())
    words = tiny.tokenizer
    med = randomize_weights(Med(ModelConfig(
        image_size=30, patch_size=10, image_width=18, image_heads=3, image_layers=1, text_width=20, text_heads=5,
        text_layers=3, fusion_layers=(1,), embed_dim=7, vocab_size=len(words), max_positions=13, max_text=9,
        pad_id=words.pad_id, cls_id=words.cls_id, sep_id=words.sep_id, dec_id=words.dec_id, enc_id=words.enc_id,
        tie_decoder=False, tie_head=False, prompt_ids=prompt,
    )), seed=5, spread=0.3)  # fmt: skip
    VLM(med, words).save(folder / "run")
    paths = [folder / name for name in ("wide.png", "clear.png", "grey.png", "turned.jpg")]
    pixels = [torch.randint(256, (20 + 9 * i, 50, 4), dtype=torch.uint8).numpy() for i in range(4)]
    Image.fromarray(pixels[0][..., :3]).save(paths[0])
    Image.fromarray(pixels[1]).save(paths[1])  # transparent in parts
    Image.fromarray(pixels[2][..., 0]).save(paths[2])
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels[3][..., :3]).save(paths[3], exif=exif)
    folders, skipped = onnx_export.to_onnx(str(folder / "run"), folder / "out")
    assert skipped == {}
    long = "is the small red circle above the large blue star or is it to the left of it"
    return VLM.load(folder / "run"), folders["onnx"], paths, ["what color is it ?", "circle", long, "is it red ?"]


@pytest.mark.parametrize("of", ["student", pytest.param("odd", marks=pytest.mark.slow)])
def test_graphs_equal_torch_at_other_sizes(of, request):
    vlm, folder, _, _ = request.getfixturevalue(of)
    torch.manual_seed(1)
    assert_equal_graphs(vlm, folder)


@pytest.mark.parametrize("of", ["student", pytest.param("odd", marks=pytest.mark.slow)])
def test_runner_equals_the_model_without_torch(of, request):
    vlm, folder, paths, questions = request.getfixturevalue(of)
    results = elsewhere(folder, paths, questions)
    words = torch_outputs(vlm, paths, questions)
    assert {name: results[name] for name in words} == words
    assert len(set(words["caption 3"])) > 1 and len(set(words["answer 3"])) > 1
    torch.testing.assert_close(torch.tensor(results["match"]), vlm.match(paths, questions), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(results["itc"]), vlm.similarity(paths, questions), atol=1e-4, rtol=0)


def test_runner_decodes_as_the_model(tmp_path):
    texts = ["a man's dog doesn't bark", "can't tell"]
    tokenizer = Tokenizer.train(texts, 100)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"parts": [], "pad_id": tokenizer.pad_id}))
    ids = tokenizer.encode(texts)[0].tolist()
    assert Runner(tmp_path)._decode(ids) == tokenizer.decode(ids) == texts


def test_runner_command_line(student):
    vlm, folder, paths, questions = student
    words = [str(paths[0]), "--caption", "--match", "a red circle", "--match", "a star", "--answer", questions[0]]
    command = [sys.executable, str(folder / "runner.py")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=ENV)
    chances = vlm.match([paths[0]] * 2, ["a red circle", "a star"]).tolist()
    lines = [f"{value:.4f}  {text}" for value, text in zip(chances, ("a red circle", "a star"), strict=True)]
    assert done.stdout.splitlines() == [*vlm.caption(paths[:1]), *lines, *vlm.answer(paths[:1], questions[:1])]
    done = subprocess.run([*command, "none.png", "--caption"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 2 and done.stderr == "runner.py: there is no image none.png; check its name\n"


def test_one_image_with_many_texts_and_maximum_of_tokens(student, monkeypatch):
    monkeypatch.setattr("dlip.export.onnx_runner.PAIR_BATCH", 4)
    vlm, folder, paths, questions = student
    runner = Runner(folder, threads=1)
    np.testing.assert_allclose(runner.match(paths[:1], questions), vlm.match(paths[:1] * 6, questions), atol=1e-4)
    for new in (None, 1, 4, 200):
        assert runner.caption(paths, 4, new) == vlm.caption(paths, 4, new)
    with pytest.raises(UserError, match="list of images"):
        runner.caption(paths[0])
    with pytest.raises(UserError, match="list of texts"):
        runner.match(paths[:1], "a red circle")
    with pytest.raises(UserError, match="2 images and 6 texts"):
        runner.match(paths[:2], questions)


def test_weights_are_stored_once(student):
    vlm, folder, _, _ = student
    bytes_ = 4 * sum(parameter.numel() for parameter in vlm.med.parameters())
    assert (folder / "weights.bin").stat().st_size < 1.2 * bytes_
    assert max(path.stat().st_size for path in folder.glob("*.onnx")) < 0.2 * bytes_
    assert not any(b"model.py" in path.read_bytes() for path in folder.glob("*.onnx"))  # whose paths are this machine's
    text = (folder / "README.md").read_text()
    assert "| TR@1 |" in text and "| teacher | " in text
    assert all(f"`{path.name}`" in text for path in folder.glob("*.onnx"))


def test_int8_weights(student, tmp_path, monkeypatch):
    """A third of the bytes and nearly equal numbers; graphs still share common weights."""
    vlm, folder, paths, questions = student
    monkeypatch.setattr(onnx_export, "trace", reuse_graphs(folder))
    assert main(["export", "scenes/student", "--to", "onnx", "--int8", "--out", str(tmp_path)]) == 0
    small = tmp_path / "onnx-int8"
    assert (small / "weights.bin").stat().st_size < 0.33 * (folder / "weights.bin").stat().st_size
    assert (
        "int8 weights" in (small / "README.md").read_text() and "int8 weights" not in (folder / "README.md").read_text()
    )
    results = elsewhere(small, paths, questions)
    cosine, match = vlm.similarity(paths, questions), vlm.match(paths, questions)
    torch.testing.assert_close(torch.tensor(results["itc"]), cosine, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.tensor(results["match"]), match, atol=0.2, rtol=0)
    fp32, int8 = (Runner(one, threads=1).similarity(paths, questions) for one in (folder, small))
    assert (fp32 != int8).any()
    assert sum(map(str.__eq__, results["caption 3"], vlm.caption(paths))) >= len(paths) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "transformers", "--int8"], "--to transformers has no int8"),
        (["--int8"], "--to dlip has no int8"),
        (["--to", "onnx", "--bf16"], "--to onnx has no bf16"),
        (["--to", "onnx", "--fp16"], "--to onnx has no fp16"),
        (["--fp16", "--int8"], "--fp16 and --int8 exclude each other"),
        (["--to", "onnx", "--shard-mb", "1"], "--to onnx has no shards; drop --shard-mb"),
    ],
)
def test_wrong_export_options_are_refused(options, message, tmp_path, capsys):
    assert main(["export", "scenes/student", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_more_beams_than_tokens_are_refused(student):
    _, folder, paths, _ = student
    with pytest.raises(UserError, match="99 beams are too many; this model's vocabulary allows 75"):
        Runner(folder, threads=1).caption(paths, 99)


def untraced(monkeypatch):
    monkeypatch.setattr(onnx_export, "trace", lambda graph, path: path.write_text(",".join(graph.outputs)))
    monkeypatch.setattr(onnx_export, "share_weights", lambda path, store, places: None)
    monkeypatch.setattr(onnx_export, "check", lambda vlm, runner, graphs: None)


def test_members_of_a_composite_have_their_own_graphs(tiny, tmp_path, monkeypatch):
    untraced(monkeypatch)
    meds = [Med(tiny.med.config) for _ in range(2)]
    meds[0].abilities, meds[1].abilities = frozenset({"itc", "itm"}), frozenset({"itm", "lm"})
    monkeypatch.setattr(VLM, "load", lambda name: VLM(Composite(meds), tiny.tokenizer, name))
    folders, skipped = onnx_export.to_onnx("a+b", tmp_path)
    files = {str(path.relative_to(folders["onnx"])): path.read_text() for path in folders["onnx"].rglob("*.onnx")}
    assert files == {
        "1/image.onnx": "states,vector", "1/text.onnx": "vector", "1/fusion.onnx": "match",
        "2/image.onnx": "states", "2/context.onnx": "cross0,cross1",
        "2/decoder.onnx": "scores,tokens,present",
    }  # fmt: skip
    (command,) = re.findall("python runner.py.*", (folders["onnx"] / "README.md").read_text())
    assert "--caption" in command and "--match" in command and "--answer" not in command
    runner = Runner(folders["onnx"])
    assert [runner.part(task).folder.name for task in ("itc", "itm", "lm")] == ["1", "1", "2"]
    assert set(skipped) == {"vqa"} and read_json(folders["onnx"] / "config.json")["skipped"] == skipped
    with pytest.raises(UserError, match="cannot answer questions"):
        runner.answer([], [])


def test_members_of_another_vocabulary_are_skipped(tiny, tmp_path, monkeypatch):
    untraced(monkeypatch)
    meds = [Med(tiny.med.config) for _ in range(2)]
    meds[0].abilities, meds[1].abilities = frozenset({"itc"}), frozenset({"lm"})
    meds[1].tokenizer = Tokenizer.train(["another vocabulary"], 40)
    monkeypatch.setattr(VLM, "load", lambda name: VLM(Composite(meds), tiny.tokenizer, name))
    folders, skipped = onnx_export.to_onnx("a+b", tmp_path)
    assert "another vocabulary" in skipped["lm"] and Runner(folders["onnx"]).abilities == {"itc"}
    with pytest.raises(MissingAbility, match="another vocabulary"):
        Runner(folders["onnx"]).caption([])


def test_differing_exports_are_not_written(student, tmp_path, monkeypatch):
    """The student's own graphs, whose decoder then differs from the changed model."""
    monkeypatch.setattr(onnx_export, "trace", reuse_graphs(student[1]))
    assert onnx_export.to_onnx("scenes/student", tmp_path / "same")[0]["onnx"].is_dir()
    other = VLM.load("scenes/student")
    other.med.text_decoder.cls.predictions.transform.dense.bias.data += 1e-2
    monkeypatch.setattr(VLM, "load", lambda name: other)
    with pytest.raises(UserError, match="export of scenes/student was not written.*decoder.onnx gives other scores"):
        onnx_export.to_onnx("scenes/student", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_tokens_with_nearly_equal_scores_may_change_places():
    def scores(*tokens: int):
        outputs = {"scores": torch.tensor([[-0.5, -1.0, -1.00001]]), "tokens": torch.tensor([tokens])}
        return onnx_export._by_token(outputs, 6)["scores"]

    torch.testing.assert_close(scores(4, 2, 3), torch.tensor([[-1.00001, -1.00001, -1.0, -1.00001, -0.5, -1.00001]]))
    assert torch.allclose(scores(4, 2, 3), scores(4, 3, 2), 1e-4) and not torch.allclose(
        scores(4, 2, 3), scores(2, 4, 3)
    )


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "scenes/student", "--to", "onnx", "--out", str(tmp_path)]) == 2
    assert "ONNX needs onnxruntime, which is not installed; run pip install 'dlip[onnx]'" in capsys.readouterr().err
