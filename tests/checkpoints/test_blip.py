"""Published BLIP checkpoints give the outputs of their own implementation; other files and code are refused."""

import itertools
import json
import re

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import BlipConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

import dlip
from dlip.checkpoints.blip import head_counts, store_once
from dlip.checkpoints.load import load_model, read_model
from dlip.common.errors import MissingAbility, UserError
from dlip.experiments.run import new_student
from dlip.export.transformers import CLASSES
from dlip.models.config import ModelConfig
from dlip.training.config import TrainConfig
from dlip.training.loop import train

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a picture of red star cat what is it ?".split() + [f"w{i}" for i in range(40)]
DEC, ENC, VOCAB = len(WORDS), len(WORDS) + 1, len(WORDS) + 2
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
TEXTS = ["a red star", "a cat", "what is it ?"]


def stock(kind: str, width: int = 128, size: int = 32, eps: float = 1e-5, heads: tuple[int, int] | None = None):
    """One of the stock classes with weights far from their initialization; heads of 64 channels unless given."""
    torch.manual_seed(0)
    image_heads, text_heads = heads or (width // 64, 2)
    vision = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=image_heads,
                  image_size=size, patch_size=8, layer_norm_eps=eps)  # fmt: skip
    text = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=text_heads,
                vocab_size=VOCAB, max_position_embeddings=64, bos_token_id=DEC, eos_token_id=3, sep_token_id=3,
                pad_token_id=0)  # fmt: skip
    model = CLASSES[kind](BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=16)).eval()
    return shaken(model)


def shaken(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def stock_folder(model, folder, weights: str = "safetensors"):
    """A checkpoint's folder as the hub has it."""
    model.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(3)
    return [Image.fromarray(torch.randint(256, (40 + i, 50, 3), dtype=torch.uint8).numpy()) for i in range(3)]


def pixels(images, mean=MEAN, std=STD, size: int = 32):
    """As the stock processor makes them."""
    processor = BlipImageProcessorPil(image_mean=mean, image_std=std, size={"height": size, "width": size})
    return processor(images, return_tensors="pt")["pixel_values"]


def until_end(rows: torch.Tensor, model) -> list[str]:
    return model.tokenizer.decode([row[: row.index(3)] if 3 in row else row for row in rows.tolist()])


# --- Hugging Face's layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@torch.no_grad()
def test_retrieval_folder(weights, images, tmp_path):
    stock_model = stock("retrieval", width=192)
    model = dlip.load(stock_folder(stock_model, tmp_path, weights))
    assert model.med.abilities == {"itc", "itm"} and model.med.config.image_width == 192
    ids, mask = model.texts(TEXTS)
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
    ids, mask = model.texts(questions)
    for beams in (1, 3):
        generated = stock_model.generate(
            ids, pixels(images), mask.long(), num_beams=beams, max_new_tokens=10, do_sample=False
        )
        assert model.answer(images, questions, beams) == until_end(generated, model)


def test_missing_abilities_are_refused(images, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("dlip.evaluation.tasks.captioning.find_java", lambda: None)  # its metrics take long
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


@pytest.mark.parametrize("cache", [True, False])
def test_student_learns_from_a_captioning_checkpoint(cache, scenes, tmp_path):
    teacher = dlip.load(stock_folder(stock("captioning"), tmp_path / "stock"))
    student = new_student("scenes-student:image_width=16,text_width=16,text_layers=1", teacher, 0)
    weights = {"lm": 1.0, "hr.image": 1.0, "hr.decoder": 1.0, "at.decoder_cross": 1.0, "kd.lm": 1.0}
    config = TrainConfig(steps=1, batch_size=4, warmup=1, log_every=1, weights=weights, cache=cache)
    losses = train(
        student, scenes, config, tmp_path / "run", teacher, cache=tmp_path / "cache", progress=False
    ).losses()
    assert set(weights) <= set(losses) and all(value > 0 for term in weights for value in losses[term])
    for term in ("hr.text", "hr.fusion", "at.cross", "kd.itm", "kd.itc"):
        with pytest.raises(MissingAbility):
            train(student, scenes, config.replace(weights={term: 1.0}), tmp_path / term, teacher, progress=False)


def test_loading_twice_gives_the_same_weights(tmp_path):
    """Weights that the checkpoint lacks are equal too: the cache of a teacher's outputs is keyed by all weights."""
    stock_folder(stock("captioning"), tmp_path)
    a, b = (load_model(tmp_path)[0].state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- the original files -----------------------------------------------------------------------------------------------


def to_original_names(state: dict) -> dict:
    """Renames stock names to the original's, by hand."""
    pairs = [("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
             ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
             ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
             ("vision_model.post_layernorm", "visual_encoder.norm"),
             ("vision_model.encoder.layers", "visual_encoder.blocks"),
             (".self_attn.projection", ".attn.proj"), (".self_attn.qkv", ".attn.qkv"), (".layer_norm1", ".norm1"),
             (".layer_norm2", ".norm2")]  # fmt: skip
    out = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = name.replace(new, old)
        out[name] = tensor.clone()
    return out


def with_training_state(state: dict) -> dict:
    """Momentum copies and queues, as pre-training and retrieval files hold them, all wrong on purpose."""
    copies = {re.sub(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.", r"\1_m.", name): tensor + 1
              for name, tensor in state.items() if not name.startswith(("text_decoder", "itm"))}  # fmt: skip
    queues = {"image_queue": torch.randn(16, 8), "text_queue": torch.randn(16, 8), "queue_ptr": torch.zeros(1).long(),
              "temp": torch.tensor(0.0321)}  # fmt: skip
    return {**state, **copies, **queues, "text_encoder.embeddings.position_ids": torch.arange(64)[None]}


MED_CONFIG = dict(hidden_size=128, num_hidden_layers=2, intermediate_size=256, hidden_act="gelu", num_attention_heads=2)


def write(state: dict, folder, name: str = "model.pth"):
    folder.mkdir(exist_ok=True)
    torch.save({"model": state, "epoch": 3}, folder / name)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    return folder / name


def named(path, width: int = 128) -> str:
    """The name of an original file whose image heads have 64 channels."""
    return f"{path}:image_heads={width // 64}"


def with_enc(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(ids[:, :1], ENC), ids[:, 1:]], 1)


CLIP = dict(mean=ModelConfig().image_mean, std=ModelConfig().image_std)


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_retrieval_file(width, images, tmp_path):
    stock_model = stock("retrieval", width, eps=1e-6)
    model = dlip.load(named(write(with_training_state(to_original_names(stock_model.state_dict())), tmp_path), width))
    assert model.med.abilities == {"itc", "itm"} and model.med.temp.item() == pytest.approx(0.0321)
    ids, mask = model.texts(TEXTS)
    score = stock_model(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)
    match = stock_model(with_enc(ids), pixels(images, **CLIP), attention_mask=mask.long()).itm_score.softmax(-1)[:, 1]
    torch.testing.assert_close(model.match(images, TEXTS), match, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_captioning_file_starts_with_its_prompt(width, images, tmp_path):
    stock_model = stock("captioning", width, eps=1e-6)
    model = dlip.load(named(write(to_original_names(stock_model.state_dict()), tmp_path), width))
    prompt, _ = model.tokenizer.encode(["a picture of"], first="[DEC]")
    assert model.med.config.prompt_ids == tuple(prompt[0, 1:-1].tolist()) == (5, 6, 7)
    prompt = prompt.expand(3, -1)  # with its [SEP], which the stock class cuts off
    generated = stock_model.generate(
        pixels(images, **CLIP), prompt.clone(), num_beams=3, max_new_tokens=12, do_sample=False
    )
    assert model.caption(images, 3, 12) == until_end(generated[:, 4:], model)


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_vqa_file(width, images, tmp_path):
    """The large one's decoder reads questions in text width, which the stock class does not support."""
    complete = stock("vqa", width, eps=1e-6)
    encoder, decoder = (BlipTextModel(complete.config.text_config, add_pooling_layer=False), complete.text_decoder)
    encoder.load_state_dict(complete.text_encoder.state_dict())
    narrow = BlipConfig(text_config={**complete.config.text_config.to_dict()}, vision_config={"hidden_size": 128})
    if width != 128:
        decoder = shaken(BlipTextLMHeadModel(narrow.text_config))
    state = {name: t for name, t in complete.state_dict().items() if not name.startswith("text_decoder")}
    state |= {f"text_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    model = dlip.load(named(write(to_original_names(state), tmp_path), width))
    assert model.med.abilities == {"vqa"}
    ids, mask = model.texts(["what is it ?"] * 3)  # of one length: the stock class lets answers attend to pads
    seen = complete.vision_model(pixels(images, **CLIP))[0]
    fused = encoder.eval()(with_enc(ids), mask.long(), encoder_hidden_states=seen)[0]
    answers, _ = model.tokenizer.encode(["a red cat", "a star", "it"], first="[DEC]")
    logits = decoder.eval()(answers, encoder_hidden_states=fused, encoder_attention_mask=mask.long()).logits
    states = model.med.question_states(model.med.fuse(ids, mask, model.image_states(images)))
    torch.testing.assert_close(model.med.decode(answers, states, mask), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("apart", [True, False])
@torch.no_grad()
def test_original_pretraining_file(apart, images, tmp_path):
    """Encoder and decoder share all but self-attention; the head is its own since BLIP ties the encoders after it."""
    encoder, decoder = stock("retrieval", 192, eps=1e-6), stock("captioning", 192, eps=1e-6).text_decoder
    decoder.cls.predictions.decoder.weight = nn.Parameter(decoder.cls.predictions.decoder.weight.clone())
    for name, parameter in decoder.bert.named_parameters():
        if ".attention." not in name:
            parameter.copy_(encoder.text_encoder.get_parameter(name))
    if not apart:
        decoder.cls.predictions.decoder.weight.copy_(decoder.bert.embeddings.word_embeddings.weight)
    state = encoder.state_dict() | {f"text_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    model = dlip.load(named(write(with_training_state(to_original_names(state)), tmp_path), 192))
    c = model.med.config
    assert model.med.abilities == {"itc", "itm", "lm"} and c.tie_decoder and c.tie_head != apart and c.prompt_ids == ()
    ids, mask = model.texts(TEXTS)
    score = encoder(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)
    captions, _ = model.tokenizer.encode(TEXTS, first="[DEC]")
    logits = decoder(captions, encoder_hidden_states=encoder.vision_model(pixels(images, **CLIP))[0]).logits
    logits_of_model = model.med.decode(captions, model.image_states(images))
    torch.testing.assert_close(logits_of_model[mask], logits[mask], atol=1e-4, rtol=0)
    model.save(tmp_path / "saved")
    again = dlip.load(tmp_path / "saved")
    torch.testing.assert_close(again.med.decode(captions, again.image_states(images)), logits_of_model, atol=0, rtol=0)


@torch.no_grad()
def test_another_image_size_interpolates_the_positions(images, tmp_path):
    """6 patches per side where the file has 4, interpolated by hand as in BLIP's vit.py."""
    state = to_original_names(stock("retrieval", eps=1e-6).state_dict())
    path = write(state, tmp_path)
    model = dlip.load(named(f"{path}@48"))
    positions = state["visual_encoder.pos_embed"]
    grid = positions[:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    resized = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    large, small = stock("retrieval", size=48, eps=1e-6), stock("retrieval", eps=1e-6).state_dict()
    large.load_state_dict({**small, "vision_model.embeddings.position_embedding": resized})
    ids, mask = model.texts(TEXTS)
    score = large(ids, pixels(images, **CLIP, size=48), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_head_counts_are_never_guessed(images, tmp_path):
    """48 checkpoints with the same weights, whose outputs depend on head counts that no shape shows."""
    path = write(to_original_names(stock("retrieval", eps=1e-6).state_dict()), tmp_path)
    beside = path.parent / "med_config.json"
    for image_heads, text_heads in itertools.product((1, 2, 4, 8), repeat=2):
        stock_model, name = (
            stock("retrieval", eps=1e-6, heads=(image_heads, text_heads)),
            f"{path}:image_heads={image_heads}",
        )
        beside.unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"how many heads .* as in model.pth:image_heads=N,text_heads=N"):
            dlip.load(path)
        model = dlip.load(f"{name},text_heads={text_heads}")
        ids, mask = model.texts(TEXTS)
        score = stock_model(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
        torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-5, rtol=0)
        beside.write_text(json.dumps(MED_CONFIG | {"num_attention_heads": text_heads}))
        with pytest.raises(UserError, match=r"as in model.pth:image_heads=N$"):
            dlip.load(path)
        torch.testing.assert_close(dlip.load(name).similarity(images, TEXTS), score, atol=1e-5, rtol=0)
    beside.write_text(json.dumps(MED_CONFIG | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="med_config.json is of another model: its num_hidden_layers is 3, not 2"):
        dlip.load(name)


def test_heads_of_published_shapes_are_said(tmp_path):
    base, large = (768, 12, 3072), (1024, 24, 4096)
    with pytest.warns(UserWarning, match="how many heads it has: 16 image heads and 12 text heads, as the published"):
        found = head_counts({"image": large, "text": base}, {}, tmp_path)
    assert found == {"image_heads": 16, "text_heads": 12}
    with pytest.warns(UserWarning, match="how many heads it has: 12 image heads, as the published"):
        assert head_counts({"image": base, "text": base}, {"text_heads": 6}, tmp_path)["text_heads"] == 6


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
        (
            write(void, tmp_path, "void.pth"),
            "void.pth.* has non-finite values in text_encoder.embeddings.word",
        ),
        (f"{complete}@{10**20}", "there is no model"),
        (tmp_path / "none.pth", "there is no model"),
    ):
        with pytest.raises(UserError, match=message):
            dlip.load(named(path))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(UserError, match="vocabulary beside it"):
        dlip.load(named(complete))


def test_wrong_vocabulary_is_refused(tmp_path):
    stock_folder(stock("captioning"), tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(UserError, match=r"a vocabulary of 57 tokens with \[DEC\] at 55, but the one there has 56"):
        dlip.load(tmp_path)


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


def test_renaming_is_complete():
    """Each parameter of the stock classes is kept exactly once."""
    for kind in CLASSES:
        model = stock(kind)
        stored = store_once(model.state_dict(), kind)
        assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in model.parameters())
        assert len({tensor.data_ptr() for tensor in stored.values()}) == len(stored)


def test_read_model_returns_only_stored_tensors(tmp_path):
    checkpoint = read_model(str(stock_folder(stock("retrieval"), tmp_path)))
    assert not any(name.startswith("text_decoder") for name in checkpoint.tensors)
