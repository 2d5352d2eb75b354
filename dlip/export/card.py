"""The card of an exported model: what it is, how to use it, how it was made and what it reaches, from its record."""

from pathlib import Path

from dlip import __version__
from dlip.models.config import ModelConfig

TITLES = {
    "retrieval": "image-text retrieval",
    "captioning": "image captioning",
    "vqa": "visual question answering",
}
PIPELINES = {"captioning": "image-text-to-text", "vqa": "visual-question-answering"}
ROLES = {
    "distilled": "a student distilled from a heavier teacher",
    "undistilled": "a model trained without a teacher",
    "teacher": "a model trained without a teacher",
}
FIGURES = (  # (place in a record's metrics, title, unit)
    (("retrieval", "tr@1"), "TR@1", "%"), (("retrieval", "tr@5"), "TR@5", "%"), (("retrieval", "ir@1"), "IR@1", "%"),
    (("retrieval", "ir@5"), "IR@5", "%"), (("captioning", "bleu4"), "BLEU-4", ""),
    (("captioning", "meteor"), "METEOR", ""), (("captioning", "rougeL"), "ROUGE-L", ""),
    (("captioning", "cider"), "CIDEr", ""), (("captioning", "spice"), "SPICE", ""),
    (("vqa", "accuracy"), "VQA soft accuracy", "%"),
)  # fmt: skip
CLASSES = {
    "retrieval": "BlipForImageTextRetrieval",
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
}


def card(task: str, vlm, c: ModelConfig, record: dict) -> str:
    """Markdown with the hub's header. vlm: the model by its name and vocabulary; c: the sizes of the part exported.

    record: as dlip/records/read.py has it, a part of it, or nothing: what is not known is left out.
    """
    parts = [
        header(task),
        f"# {record.get('name') or Path(vlm.name).name}: {TITLES[task]}",
        origin(c, record),
        usage(task, vlm, c),
    ]
    parts += [table for table in (figures(record), making(record), cost(c, record)) if table]
    parts.append(
        "## Pixels and words\n\n"
        f"Pictures are squeezed to {c.image_size} x {c.image_size} px (bicubic). With Pillow the processor gives the "
        "same pixels as in training; its torchvision backend rounds differently. Turn pictures upright and put "
        f"transparent ones over white first. Training cut texts at {c.max_text} tokens, as `truncation=True` does."
    )
    return "\n\n".join(parts) + "\n"


def header(task: str) -> str:
    lines = ["---", "library_name: transformers", "tags: [blip, vision-language, distillation]"]
    lines += [f"pipeline_tag: {PIPELINES[task]}"] if task in PIPELINES else []
    return "\n".join([*lines, "---"])


def origin(c: ModelConfig, record: dict) -> str:
    made = ROLES.get(record.get("role"), "a BLIP-style model")
    return (
        f"This is {made}: image encoder of {c.image_layers} layers and width {c.image_width}, text encoder of "
        f"{c.text_layers} and {c.text_width}. Exported by DLIP Workbench {__version__} to run in stock `transformers`."
    )


def usage(task: str, vlm, c: ModelConfig) -> str:
    prompt = f'text="{vlm.tokenizer.decode([list(c.prompt_ids)])[0]}", ' if c.prompt_ids else ""
    first = "model.generate(**inputs, generation_config=model.generation_config)\n"
    said = "print(processor.batch_decode(ids, skip_special_tokens=True))"
    body = {
        "retrieval": (
            'inputs = processor(images=image, text=["a photo"], padding=True, return_tensors="pt")\n'
            "print(model(**inputs).itm_score.softmax(-1)[:, 1])  # the probability that the text fits\n"
            + (f"inputs.input_ids[:, 0] = {c.cls_id}  # [CLS], with which texts are read alone\n"
               if c.enc_id != c.cls_id else "")
            + "print(model(**inputs, use_itm_head=False).itm_score)  # cosine"
        ),
        "captioning": f'inputs = processor(images=image, {prompt}return_tensors="pt")\nids = {first}{said}',
        "vqa": f'inputs = processor(images=image, text="what is it?", return_tensors="pt")\nids = {first}{said}',
    }[task]  # fmt: skip
    note = {
        "captioning": "\n\nThe decoder inside does not read this folder's generation settings: pass them as above, "
        "or to a pipeline as `generate_kwargs=dict(num_beams=3, max_new_tokens=20)`.",
        "vqa": "\n\nQuestions of one length may go together; the stock class lets answers attend to pads. Since its "
        "version 5 transformers has no `pipeline` for questions.",
    }.get(task, "")
    return (
        "## How to use it\n\n```python\nfrom PIL import Image\n"
        f"from transformers import AutoProcessor, {CLASSES[task]}\n\n"
        'folder = "..."  # this folder or its name on the hub\n'
        f"processor, model = AutoProcessor.from_pretrained(folder), {CLASSES[task]}.from_pretrained(folder)\n"
        f'image = Image.open("picture.jpg").convert("RGB")\n{body}\n```{note}'
    )


def figures(record: dict) -> str:
    metrics, rows = record.get("metrics") or {}, []
    for (group, name), title, unit in FIGURES:
        value = (metrics.get(group) or {}).get(name)
        if value is not None:
            rows.append(f"| {title} | {value:.1f}{unit} |")
    if not rows:
        return ""
    where = f"Measured on {record['data']} {record['split']}; CIDEr and the like are times 100.\n\n"
    return f"## What it reaches\n\n{where}| figure | value |\n|---|---|\n" + "\n".join(rows)


def making(record: dict) -> str:
    config = record.get("config") or {}
    train, data = config.get("train") or {}, config.get("data") or {}
    rows = {
        "teacher": config.get("teacher"),
        "began at": ", ".join(config.get("start") or []),
        "data": f"{data['name']} {data['split']}, {data['pictures']:,} pictures" if data else None,
        "losses": ", ".join(f"{term} x {weight:g}" for term, weight in (train.get("weights") or {}).items() if weight),
        "steps": f"{train['steps']:,} of {train['batch_size']} pictures" if train else None,
        "seed": train.get("seed"),
        "training time": f"{record['wall_s']:,.0f} s on {record.get('device')}" if record.get("wall_s") else None,
        "command": f"`{record['command']}`" if record.get("command") else None,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    return "## How it was made\n\n| | |\n|---|---|\n" + "\n".join(lines) if lines and config else ""


def cost(c: ModelConfig, record: dict) -> str:
    found = record.get("efficiency") or {}
    if "params_m" not in found:
        return ""
    return (
        f"## What it costs\n\nThe whole model, of all tasks: {found['params_m']:.2f}M parameters, "
        f"{found['flops_g']:.3f} GFLOPs for a picture and a text."
    )
