"""Export to folders that stock `transformers` loads without this package, to low precision, and to the hub.

Each task has a folder, as each stock class has: weights, processor, generation settings and a card.
The stock processor resizes images as `dlip` does with Pillow; with torchvision pixels differ by rounding. It neither
applies EXIF orientation nor puts transparent images on white, as `dlip` does first.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from dlip.checkpoints.load import locate, parse_name, save_model
from dlip.common.errors import UserError, first_line
from dlip.common.files import exclusive_lock, leftover_temporaries, read_json, system_errors, write_json
from dlip.data.tokenizer import Tokenizer
from dlip.export.card import TITLES, card, transformers_card
from dlip.models.config import ModelConfig
from dlip.models.fast.precision import convert_precision, require_fp32_blip
from dlip.models.med import Med
from dlip.models.tasks import TASKS
from dlip.records.reading import record_of_model
from dlip.vlm import MAX_ANSWER_TOKENS, VLM

CLASSES = {
    "retrieval": BlipForImageTextRetrieval,
    "captioning": BlipForConditionalGeneration,
    "vqa": BlipForQuestionAnswering,
}


def to_transformers(name: str, out: str | Path, license: str | None = None) -> tuple[dict[str, Path], dict[str, str]]:
    """Write `out`/retrieval, `out`/captioning and `out`/vqa, each whole or not at all.

    Returns the folder of each task, and the reason for each task that is skipped. Raises UserError if all are skipped,
    or if something else is in the way.
    """
    vlm, record, out = VLM.load(name), record_of(name), Path(out)
    if vlm.med.abilities <= {"itc"}:
        raise UserError(f"{name} was not trained for ITM, LM or VQA, of which stock classes need one; export its "
                        "encoders by --to vit and --to bert")  # fmt: skip
    folders, skipped = {}, {}
    for task in TASKS:
        try:
            med = vlm.med.model_for(TASKS[task].abilities[-1])
            stock = to_stock(med, task)
        except UserError as reason:
            skipped[task] = str(reason)
            continue
        if task != "retrieval":
            c = med.config
            caption = min(c.max_text, c.max_positions - 1 - len(c.prompt_ids))
            stock.generation_config = GenerationConfig(
                max_new_tokens=caption if task == "captioning" else MAX_ANSWER_TOKENS, num_beams=3, do_sample=False,
                bos_token_id=c.dec_id, eos_token_id=c.sep_id, pad_token_id=c.pad_id,
                no_repeat_ngram_size=c.no_repeat_ngram_size if task == "captioning" else 0,
            )  # fmt: skip
        stock_processor = processor(med.tokenizer, med.config, task)
        card = transformers_card(task, vlm, med, record, CLASSES[task].__name__, license)

        def write(folder: Path, stock=stock, stock_processor=stock_processor, card=card) -> None:
            stock.save_pretrained(folder)
            stock_processor.save_pretrained(folder)
            (folder / "README.md").write_text(card)

        folders[task] = out / task
        replace_folder(folders[task], write)
    if not folders:
        raise UserError(f"stock transformers does not support {name}: {'; '.join(dict.fromkeys(skipped.values()))}")
    return folders, skipped


def to_dlip(
    name: str,
    out: str | Path,
    precision: str = "fp32",
    license: str | None = None,
    shard_mb: float | None = None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write `out`/fp32, fp16 or bf16, which `dlip.load` reads, whole or not at all.

    fp16 weights are read as fp32. shard_mb: size of a file in MB above which weights are split over several.
    Returns the folder by its precision, and an empty dict, as nothing is skipped. Raises UserError for a composite.
    """
    vlm, record, folder = VLM.load(name), record_of(name), Path(out) / precision
    require_fp32_blip(vlm.med, "export")
    if precision != "fp16":
        convert_precision(vlm.med, precision)

    def write(new: Path) -> None:
        save_model(vlm.med, vlm.tokenizer, new, {"made_from": name}, precision == "fp16", shard_mb)
        about = dict(precision=precision, abilities=vlm.med.abilities)
        (new / "README.md").write_text(card("dlip.md", vlm, record, "dlip", TITLES, license, **about))
        if "id" in record:
            write_json(new / "record.json", record)

    replace_folder(folder, write)
    return {precision: folder}, {}


# --- stock classes ----------------------------------------------------------------------------------------------------


def to_stock(med: Med, task: str) -> PreTrainedModel:
    """The stock class for "retrieval", "captioning" or "vqa" with this model's weights, in eval mode.

    Stock retrieval and VQA read texts from [CLS] on: scores are equal if `enc_id` is `cls_id`, or if the caller puts
    [ENC] first. Raises UserError for a model that the class does not support.
    """
    if task == "vqa" and med.config.image_width != med.config.text_width:
        raise UserError("stock BlipForQuestionAnswering needs equal widths of image and text; this model's differ")
    stock = CLASSES[task](stock_config(med.config))
    state = require_fp32_blip(med, "export").state_dict()
    stock.load_state_dict({name: state[name] for name in stock.state_dict()})
    return stock.eval()


def stock_config(c: ModelConfig) -> BlipConfig:
    """The configuration of the stock classes. Raises UserError for sizes that they do not support."""
    if c.image_backbone:
        raise UserError("stock transformers has no BLIP with an image backbone; export the model with --to onnx")
    if c.fusion_layers != tuple(range(c.text_layers)):
        raise UserError("stock transformers has cross-attention in every text layer; this model lacks it in some")
    text = text_options(c) | {"encoder_hidden_size": c.image_width, "sep_token_id": c.sep_id}
    return BlipConfig(
        vision_config=image_options(c), text_config=text, image_text_hidden_size=c.embed_dim,
        tie_word_embeddings=c.tie_head,
    )  # fmt: skip


def image_options(c: ModelConfig) -> dict:
    """The image encoder's options that the stock BLIP and ViT share."""
    return dict(
        hidden_size=c.image_width, intermediate_size=c.image_mlp, num_hidden_layers=c.image_layers,
        num_attention_heads=c.image_heads, image_size=c.image_size, patch_size=c.patch_size,
        layer_norm_eps=c.image_eps, hidden_act="gelu",
    )  # fmt: skip


def text_options(c: ModelConfig) -> dict:
    """The decoder's options that the stock BLIP and BERT share."""
    return dict(
        hidden_size=c.text_width, intermediate_size=c.text_mlp, num_hidden_layers=c.text_layers,
        num_attention_heads=c.text_heads, vocab_size=c.vocab_size, max_position_embeddings=c.max_positions,
        layer_norm_eps=c.text_eps, hidden_act="gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=c.pad_id, bos_token_id=c.dec_id, eos_token_id=c.sep_id, tie_word_embeddings=c.tie_head,
    )  # fmt: skip


def processor(tokenizer: Tokenizer, c: ModelConfig, task: str) -> BlipProcessor:
    """The stock processor that gives what this model reads.

    Texts that are read with an image start with the model's own first token, [ENC] or [CLS]. A tokenizer has one such
    rule: if it is [ENC], callers of retrieval's ITC have to put [CLS] there, as the card says.
    """
    fast = FastTokenizer.from_str(tokenizer.fast.to_str())
    fast.no_truncation()
    first = "[CLS]" if task == "captioning" or c.enc_id == c.cls_id else "[ENC]"
    ids = [(token, fast.token_to_id(token)) for token in (first, "[SEP]")]
    fast.post_processor = processors.TemplateProcessing(single=f"{first} $A [SEP]", special_tokens=ids)
    stock = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[DEC]", extra_special_tokens=["[ENC]"], model_max_length=c.max_text,
        padding_side="right", model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=True,
    )  # fmt: skip
    image_processor = BlipImageProcessorPil(
        size={"height": c.image_size, "width": c.image_size}, image_mean=list(c.image_mean), image_std=list(c.image_std)
    )
    return BlipProcessor(image_processor, stock)


# --- folders ----------------------------------------------------------------------------------------------------------


def record_of(name: str) -> dict:
    """The record of a model's run, else its configuration as a part of one, else an empty dict.

    At another image size it has no scores and no costs, which would be those of the model at its own. Raises UserError
    for a damaged record.
    """
    parsed = parse_name(name)
    try:
        folder = locate(parsed.name)
    except UserError:  # a composite
        return {}
    if record := record_of_model(folder, parsed.size):
        unscored = {"metrics": {}, "efficiency": {}, "outcomes": {}, "samples": [], "bounds": None}
        return record | (unscored if parsed.size else {})
    run = read_json(folder / "config.json").get("run", {}) if (folder / "config.json").is_file() else {}
    return {"config": run, "name": folder.name} if run else {}


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary folder)` and rename the folder to `path`, so that an earlier export is replaced at once.

    Waits while another process exports to `path`, and removes what killed exports left. Raises UserError if something
    other than an export is in the way.
    """
    if path.exists() and not ((path / "config.json").is_file() and (path / "README.md").is_file()):
        raise UserError(f"{path} exists and is not an export; choose another folder")
    new, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    lock = path.with_name(f".{path.name}.lock")
    with exclusive_lock(lock):
        try:
            new.mkdir()
            with system_errors(path):
                write(new)
            if path.exists():
                path.rename(old)
            new.rename(path)
            for leftover in leftover_temporaries(path.parent, path.name):
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(new, ignore_errors=True)
            lock.unlink()


def push(folders: dict[str, Path], repo: str) -> list[str]:
    """Upload each folder to the hub as `repo`-KEY, such as `repo`-retrieval; return these names.

    Weights and record of an earlier upload are deleted there if the folder lacks them.
    Raises UserError if an upload fails.
    """
    from huggingface_hub import HfApi

    api, names = HfApi(), {f"{repo}-{task}": folder for task, folder in folders.items()}
    try:
        for name, folder in names.items():
            api.create_repo(name, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=str(folder),
                commit_message="Exported by DLIP Workbench",
                delete_patterns=["model*", "record.json"],
            )
    except Exception as error:  # network and hub raise many types
        raise UserError(
            f"the upload to {name} failed ({first_line(error)}); log in with `hf auth login`, or check it"
        ) from None
    return list(names)
