"""Published BLIP checkpoints give the outputs of their own implementation; other files and code are refused."""

import pytest
import torch

import dlip
from dlip.common.errors import MissingAbility, UserError
from tests.checkpoints.helpers import (
    TEXTS,
    VOCAB,
    WORDS,
    named,
    pixels,
    stock,
    stock_folder,
    to_original_names,
    until_end,
    write,
)

# --- Hugging Face's layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@torch.no_grad()
def test_retrieval_folder(weights, images, tmp_path):
    stock_model = stock("retrieval", width=192)
    model = dlip.load(stock_folder(stock_model, tmp_path, weights))
    assert model.med.abilities == {"itc", "itm"} and model.med.config.image_width == 192
    ids, mask = model.tokenize(TEXTS)
    score = stock_model(ids, pixels(images), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)
    match = stock_model(ids, pixels(images), attention_mask=mask.long()).itm_score.softmax(-1)[:, 1]
    assert match.max() - match.min() > 0.01
    torch.testing.assert_close(model.match(images, TEXTS), match, atol=1e-4, rtol=0)


@torch.no_grad()
def test_captioning_folder(images, tmp_path):
    stock_model = stock("captioning", width=192)
    model = dlip.load(stock_folder(stock_model, tmp_path))
    for beams in (1, 3):
        generated = stock_model.generate(pixels(images), num_beams=beams, max_new_tokens=12, do_sample=False)
        assert model.caption(images, beams, 12) == until_end(generated, model)
    ids, mask = model.tokenizer.encode(TEXTS, first="[DEC]")
    logits = stock_model(pixels(images), ids, attention_mask=mask.long()).logits
    logits_of_model = model.med.decode(ids, model.image_states(images))
    torch.testing.assert_close(logits_of_model[mask], logits[mask], atol=1e-4, rtol=0)


@torch.no_grad()
def test_vqa_folder(images, tmp_path):
    stock_model = stock("vqa")
    model = dlip.load(stock_folder(stock_model, tmp_path))
    questions = ["what is it ?"] * 3  # of one length: the stock class lets answers attend to pads
    ids, mask = model.tokenize(questions)
    for beams in (1, 3):
        generated = stock_model.generate(
            ids, pixels(images), mask.long(), num_beams=beams, max_new_tokens=10, do_sample=False
        )
        assert model.answer(images, questions, beams) == until_end(generated, model)


def test_missing_abilities_are_refused(images, scenes, tmp_path):
    model = dlip.load(stock_folder(stock("captioning"), tmp_path / "stock"))
    model.save(tmp_path / "saved")
    for one in (model, dlip.load(tmp_path / "saved")):
        assert one.med.abilities == {"lm"} and len(one.caption(images[:1])) == 1
        with pytest.raises(MissingAbility, match="cannot match texts with images.*it can: write captions"):
            one.match(images[:1], TEXTS[:1])
        with pytest.raises(MissingAbility, match="cannot compare"):
            one.similarity(images, TEXTS)
        with pytest.raises(MissingAbility, match="cannot answer"):
            one.answer(images[:1], TEXTS[:1])
    metrics = dlip.evaluate(model, scenes, tasks=("retrieval", "captioning"), max_new_tokens=3, progress=False)
    assert metrics["retrieval"] is None and "cannot compare" in metrics["notes"]["retrieval"] and metrics["captioning"]


# --- what is refused --------------------------------------------------------------------------------------------------


class Trap:
    """Code that would run if the file were unpickled as usual."""

    def __reduce__(self):
        return print, ("the file's code ran",)


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="objects other than tensors"):
        dlip.load(tmp_path / "trap.pth")
    assert "ran" not in capsys.readouterr().out


def test_other_and_damaged_files_are_refused(tmp_path):
    state = to_original_names(stock("captioning").state_dict())
    complete = write(state, tmp_path)
    (tmp_path / "cut.pth").write_bytes(complete.read_bytes()[:3000])
    deep = state | {f"visual_encoder.blocks.{10**30}.norm1.weight": torch.ones(1)}
    part = {name: tensor for name, tensor in state.items() if "layer.1.attention" not in name}
    other = {name: tensor for name, tensor in state.items() if not name.startswith("text_decoder")}
    void = {
        name: tensor * float("nan") if name.startswith("text_decoder") else tensor for name, tensor in state.items()
    }
    (tmp_path / "notes.txt").write_text("root:x:0:0:root:/root:/bin/bash\n")
    for path, message in (
        (tmp_path / "cut.pth", "cannot be read as weights"),
        (tmp_path / "notes.txt", r"cannot be read as weights \(IndexError\); name a checkpoint"),
        (write({"fc.weight": torch.ones(2)}, tmp_path, "fc.pth"), "no visual_encoder"),
        (write(part, tmp_path, "part.pth"), "text_decoder.bert.encoder.layer.1.attention"),
        (write(other, tmp_path, "image.pth"), "unknown kind"),
        (write(other | {"text_decoder.x": torch.ones(1)}, tmp_path, "bare.pth"), "bare.pth is damaged, or not a model"),
        (write({"a": 1}, tmp_path, "numbers.pth"), "not a table of tensors"),
        (write(deep, tmp_path, "deep.pth"), r"3 layers of blocks\. up to number 1000000"),
        (write(void, tmp_path, "void.pth"), "void.pth.* has non-finite values in text_encoder.embeddings.word"),
        (f"{complete}@{10**20}", "there is no model"),
        (tmp_path / "none.pth", "there is no model"),
    ):
        with pytest.raises(UserError, match=message):
            dlip.load(named(path))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(UserError, match="vocabulary beside it"):
        dlip.load(named(complete))


def test_hub_is_used_for_missing_files(tmp_path, monkeypatch):
    folder, calls = stock_folder(stock("captioning"), tmp_path / "hub", "bin"), []

    def snapshot(name, allow_patterns):
        calls.append((name, "pytorch_model.bin" in allow_patterns))
        if name == "nobody/nothing":
            raise OSError("404 not found\nand more")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert dlip.load("Salesforce/blip-image-captioning-base").med.abilities == {"lm"}
    assert calls == [("Salesforce/blip-image-captioning-base", False), ("Salesforce/blip-image-captioning-base", True)]
    with pytest.raises(UserError, match="'nobody/nothing'.*404 not found; check"):
        dlip.load("nobody/nothing")
    path = write(to_original_names(stock("captioning").state_dict()), tmp_path / "original")
    (tmp_path / "original" / "vocab.txt").unlink()
    assert len(dlip.load(named(path)).tokenizer) == VOCAB  # the hub's
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="put its vocab.txt beside the file"):
        dlip.load(named(path))
    calls.clear()
    with pytest.raises(UserError, match="there is no model 'scenes/nobody'"):
        dlip.load("scenes/nobody")
    assert not calls
