"""A model as folders that stock `transformers` loads without this package, and on their way to the hub.

Each task has its folder, as the stock classes have: weights, processor, generation settings, and a card
(dlip/export/card.py).
Pixels: the stock processor resizes as we do where it works with Pillow; with torchvision its pixels differ by rounding.
It does not turn pictures as their EXIF says nor put transparent ones over white, as `dlip` does before.
"""

import fcntl
import os
import shutil
import uuid
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors
from transformers import BlipProcessor, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from dlip import __version__
from dlip.checkpoints.load import locate, save_model, split_size
from dlip.common.errors import UserError
from dlip.common.files import leftover_temporaries, read_json, system_errors
from dlip.export.card import card
from dlip.export.huggingface import to_stock
from dlip.models.composite import Composite
from dlip.models.config import ModelConfig
from dlip.models.fast.precision import lower, refuse_lowered
from dlip.models.tasks import TASKS
from dlip.records.schema import upgrade
from dlip.vlm import MAX_ANSWER_TOKENS, VLM

NEW_TOKENS = {"captioning": 20, "vqa": MAX_ANSWER_TOKENS}


def to_transformers(name: str, out: str | Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes `out`/retrieval, `out`/captioning and `out`/vqa of a model, each whole or not at all.

    Returns the folders by task, and the reason for each task that is left out. Raises UserError where all are, or where
    something else is in the way.
    """
    vlm, record, out = VLM.load(name), record_of(name), Path(out)
    folders, left_out = {}, {}
    for task in TASKS:
        ability = TASKS[task].abilities[-1]
        try:
            stock = to_stock(vlm.med.model_for(ability), task)
        except UserError as reason:
            left_out[task] = str(reason)
            continue
        config = vlm.med.model_for(ability).config
        if task in NEW_TOKENS:
            stock.generation_config = GenerationConfig(
                max_new_tokens=NEW_TOKENS[task], num_beams=3, do_sample=False, bos_token_id=config.dec_id,
                eos_token_id=config.sep_id, pad_token_id=config.pad_id,
            )  # fmt: skip
        reader, text = processor(vlm, config, task), card(task, vlm, config, record)

        def write(folder: Path, stock=stock, reader=reader, text=text) -> None:
            stock.save_pretrained(folder)
            reader.save_pretrained(folder)
            (folder / "README.md").write_text(text)

        folders[task] = out / task
        write_folder(folders[task], write)
    if not folders:
        raise UserError(f"stock transformers has no place for {name}: {'; '.join(dict.fromkeys(left_out.values()))}")
    return folders, left_out


def to_precision(name: str, out: str | Path, precision: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes `out`/bf16 or `out`/int8, which `dlip.load` reads, whole or not at all.

    Returns the folder by its name, and nothing that is left out. Raises UserError for a model of several checkpoints.
    """
    vlm, folder = VLM.load(name), Path(out) / precision
    if isinstance(vlm.med, Composite):
        raise UserError(f"{name} are several models; export each by itself")
    lower(refuse_lowered(vlm.med, "export"), precision)

    def write(new: Path) -> None:
        save_model(vlm.med, vlm.tokenizer, new, {"made_from": name})
        (new / "README.md").write_text(
            f"# {Path(vlm.name).name} in {precision}\n\n"
            f"{name} as DLIP Workbench {__version__} has put it into {precision}; `dlip.load` reads this folder.\n"
        )

    write_folder(folder, write)
    return {precision: folder}, {}


def processor(vlm: VLM, c: ModelConfig, task: str) -> BlipProcessor:
    """The stock processor that gives what this model reads.

    Texts read with their picture begin with the model's own first token, [ENC] or [CLS]. A tokenizer has one such rule,
    so that where it is [ENC] a caller of retrieval's ITC has to put [CLS] there, as the card says.
    """
    fast = FastTokenizer.from_str(vlm.tokenizer.fast.to_str())
    fast.no_truncation()
    first = "[CLS]" if task == "captioning" or c.enc_id == c.cls_id else "[ENC]"
    ids = [(token, fast.token_to_id(token)) for token in (first, "[SEP]")]
    fast.post_processor = processors.TemplateProcessing(single=f"{first} $A [SEP]", special_tokens=ids)
    words = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[DEC]", extra_special_tokens=["[ENC]"], model_max_length=c.max_text,
        padding_side="right", model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    pixels = BlipImageProcessorPil(
        size={"height": c.image_size, "width": c.image_size}, image_mean=list(c.image_mean), image_std=list(c.image_std)
    )
    return BlipProcessor(pixels, words)


def record_of(name: str) -> dict:
    """What is known of how a model was made: its run's record, else its run's configuration, else nothing."""
    try:
        folder = locate(split_size(name)[0])
    except UserError:  # a composite
        return {}
    if (folder / "record.json").is_file():
        return upgrade(read_json(folder / "record.json"))
    run = read_json(folder / "config.json").get("run", {}) if (folder / "config.json").is_file() else {}
    return {"config": run, "name": folder.name} if run else {}


def write_folder(path: Path, write) -> None:
    """`write(temporary folder)` beside it, then a rename; an export that is there already is replaced only then.

    What a killed export left beside it goes with it. Raises UserError where something that is no export is in the way.
    """
    if path.exists() and not ((path / "config.json").is_file() and (path / "README.md").is_file()):
        raise UserError(f"{path} is there already and is no export; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    place = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)  # until it is closed: another export to this place is waited for
        new.mkdir()
        with system_errors(path):
            write(new)
        if path.exists():
            path.rename(old)
        new.rename(path)
        for left in leftover_temporaries(path.parent, path.name):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        os.close(place)


def push(folders: dict[str, Path], repo: str) -> list[str]:
    """Uploads each folder to the hub as `repo`-retrieval, `repo`-caption and `repo`-vqa; returns these names.

    Raises UserError where the hub does not take them.
    """
    from huggingface_hub import HfApi

    api, names = HfApi(), {f"{repo}-{task}": folder for task, folder in folders.items()}
    try:
        for name, folder in names.items():
            api.create_repo(name, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Exported by DLIP Workbench")
    except Exception as error:  # network and hub raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the hub does not take {name} ({reason}); log in with `hf auth login`, or check it") from None
    return list(names)
