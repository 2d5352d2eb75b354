"""Captions, answers and scores from a folder of ONNX graphs; needs numpy, Pillow, onnxruntime and tokenizers only.

`dlip export MODEL --to onnx` copies this file there as runner.py, beside the modules it imports
(dlip/export/onnx_export.py).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from dlip.common.errors import MissingAbility, UserError, check_at_least
from dlip.common.text import join_words, replace_surrogates
from dlip.data.transforms import ImageInput, as_list, load_image, resize_square
from dlip.models.beam_search import BeamSearch

PAIR_BATCH = 64
"""Pairs of an image and a text that are matched at a time."""


class Part:
    """The graphs of one model, each opened when it first runs.

    config: an entry of "parts" in config.json. spin: threads that wait within a call keep their core.
    """

    steps = 0
    """Decoder steps that it has computed."""

    def __init__(self, folder: Path, config: dict, threads: int, spin: bool = False):
        self.folder, self.config, self.threads, self.spin, self.sessions = folder, config, threads, spin, {}

    def run(self, graph: str, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
        if graph not in self.sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.add_session_config_entry("session.x64quantprecision", "1")  # no overflow on processors without VNNI
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spin)))
            options.add_session_config_entry("session.force_spinning_stop", "1")
            self.sessions[graph] = onnxruntime.InferenceSession(
                self.folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[graph].run(outputs, inputs)

    def decoder(self, context: np.ndarray, mask: np.ndarray, beams: int) -> "Decoder":
        return Decoder(self, context, mask, beams)

    def search(
        self, context: np.ndarray, mask: np.ndarray, prompt: list[int], num_beams: int, max_new_tokens: int,
        no_repeat_ngram_size: int = 0,
    ) -> list[list[int]]:  # fmt: skip
        """The best text of each context [B, S, Di], without prompt and [SEP]; one beam is greedy. mask: bool [B, S].

        Raises UserError for more beams than half of the vocabulary.
        """
        c, b, k = self.config, len(context), num_beams
        if 2 * k > c["vocab_size"]:
            raise UserError(f"{k} beams are too many; this model's vocabulary allows {c['vocab_size'] // 2}")
        max_new_tokens = min(max_new_tokens, c["max_positions"] - len(prompt))
        if max_new_tokens < 1:
            return [[]] * b
        decoder = self.decoder(context, mask, k)
        for token in prompt:
            scores, tokens = decoder(np.full((b, k), token))
        search = BeamSearch([prompt] * b, k, c["sep_id"], max_new_tokens, no_repeat_ngram_size)
        total = np.full((b, k), -1e9, np.float32)
        total[:, 0] = 0  # all beams are equal at first
        while True:
            for row, beam, token in zip(*(search.repeats() or ()), strict=True):
                scores[row, beam, tokens[row, beam] == token] = -np.inf
            each, sums = scores.shape[-1], (total[..., None] + scores).reshape(len(scores), -1)
            best = np.argsort(-sums, kind="stable")[:, : 2 * k]  # of all beams [B, 2k]
            sums, tokens = (np.take_along_axis(values.reshape(sums.shape), best, 1) for values in (sums, tokens))
            update = search.advance(sums.tolist(), (best // each).tolist(), tokens.tolist())
            if update is None:
                break
            rows, beams, tokens, total = (np.array(values) for values in update)
            decoder.keep(rows, beams)
            total = total.astype(np.float32)
            scores, tokens = decoder(tokens)
        self.steps += search.step
        texts = [finished[0][1][len(prompt) :] for finished in search.finished]
        return [text[:-1] if text[-1] == c["sep_id"] else text for text in texts]


class Decoder:
    """The text decoder over contexts [B, S, Di], each with `beams` texts whose keys and values it keeps."""

    def __init__(self, part: Part, context: np.ndarray, mask: np.ndarray, beams: int):
        c, names = part.config, [f"cross{i}" for i in range(part.config["cross"])]
        self.part, self.mask = part, mask
        self.cross = dict(zip(names, part.run("context", names, context=context), strict=True))
        self.past = np.zeros((c["layers"], 2, len(context), beams, c["heads"], 0, c["head_width"]), np.float32)

    def __call__(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read a token of each text [B, K]. Returns log-probabilities and ids of its best next ones [B, K, N]."""
        scores, tokens, self.past = self.part.run(
            "decoder", ["scores", "tokens", "present"], token=token, past=self.past, mask=self.mask, **self.cross
        )
        return scores, tokens

    def keep(self, rows: np.ndarray, beams: np.ndarray) -> None:
        """Keep only the contexts `rows` [B'], and of each the texts `beams` [B', K]."""
        self.past = self.past[:, :, rows[:, None], beams]
        if len(rows) < len(self.mask):
            self.mask, self.cross = self.mask[rows], {name: values[rows] for name, values in self.cross.items()}


class Runner:
    """An exported model, with methods of `dlip.vlm.VLM` on numpy arrays.

    threads: of the library; 0 leaves the choice to it. part: opens the graphs of one model, with those of another
    library than onnxruntime. Raises MissingAbility, a UserError, if the model was not trained for what a method does.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent, threads: int = 0, part: type[Part] = Part):
        folder = Path(folder)
        self.name = str(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.parts = [part(folder / one["folder"], one, threads) for one in self.config["parts"]]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding(pad_id=self.config["pad_id"], pad_token="[PAD]")

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset(ability for part in self.parts for ability in part.config["abilities"])

    @property
    def temperature(self) -> float:
        """Of ITC, whose logits are the cosines divided by it."""
        return self.part("itc").config["temperature"]

    @property
    def steps(self) -> int:
        """Decoder steps that it has computed."""
        return sum(part.steps for part in self.parts)

    def part(self, ability: str) -> Part:
        for part in self.parts:
            if ability in part.config["abilities"]:
                return part
        raise MissingAbility(self.config["skipped"][ability])

    def caption(self, images: list[ImageInput], num_beams: int = 3, max_new_tokens: int | None = None) -> list[str]:
        """A caption for each image, without the prompt, of at most `max_text` tokens by default."""
        check_at_least(1, num_beams=num_beams, max_new_tokens=max_new_tokens)
        part, images = self.part("lm"), as_list(images, "image")
        if not images:
            return []
        states = self.encode(part, images, "states")
        prompt, mask = [part.config["dec_id"], *part.config["prompt_ids"]], np.ones(states.shape[:2], bool)
        max_new_tokens = max_new_tokens or part.config.get("max_text", self.config["max_text"])
        size = part.config.get("no_repeat_ngram_size", 0)
        return self._decode(part.search(states, mask, prompt, num_beams, max_new_tokens, size))

    def answer(self, images: list[ImageInput], questions: list[str], num_beams: int = 3) -> list[str]:
        """The answer to each image's question; a single image may come with several questions."""
        check_at_least(1, num_beams=num_beams)
        part, questions = self.part("vqa"), as_list(questions, "question")
        if not questions:
            return []
        ids, mask, states, rows = self._pairs(part, images, questions)
        (context,) = part.run("fusion", ["question"], ids=ids, mask=mask, states=states[rows])
        return self._decode(
            part.search(context, mask, [part.config["dec_id"]], num_beams, self.config["answer_tokens"])
        )

    def match(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITM probability that each text describes its image [N]; a single image may come with several texts."""
        no_match, match = self.match_logits(images, texts).T
        return 1 / (1 + np.exp(no_match - match))

    def match_logits(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITM logits [N, 2], index 1 is a match."""
        part, texts = self.part("itm"), as_list(texts, "text")
        if not texts:
            return np.zeros((0, 2), np.float32)
        ids, mask, states, rows = self._pairs(part, images, texts)
        batches = (slice(i, i + PAIR_BATCH) for i in range(0, len(ids), PAIR_BATCH))
        logits = [part.run("fusion", ["match"], ids=ids[b], mask=mask[b], states=states[rows[b]])[0] for b in batches]
        return np.concatenate(logits)

    def similarity(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITC cosine of each image with each text [I, T]."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: list[ImageInput]) -> np.ndarray:
        part, images = self.part("itc"), as_list(images, "image")
        return self.encode(part, images, "vector") if images else _no_vectors(part)  # unit vectors [I, E]

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        part, texts = self.part("itc"), as_list(texts, "text")
        if not texts:
            return _no_vectors(part)
        ids, mask = self.tokenize(part, texts)
        return part.run("text", ["vector"], ids=ids, mask=mask)[0]  # unit vectors [T, E]

    def encode(self, part: Part, images: list[ImageInput], output: str) -> np.ndarray:
        side = part.config["image_size"]
        pixels = np.stack([resize_square(load_image(image), side) for image in images])
        return part.run("image", [output], pixels=pixels)[0]  # of pixels [B, S, S, 3]

    def tokenize(self, part: Part, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # folders of version 0.2 have one max_text for all parts
        self.tokenizer.enable_truncation(part.config.get("max_text", self.config["max_text"]))
        encodings = self.tokenizer.encode_batch([replace_surrogates(text) for text in texts])
        ids, mask = [one.ids for one in encodings], [one.attention_mask for one in encodings]
        return np.array(ids), np.array(mask, bool)  # [N, T]

    def _pairs(self, part: Part, images: list, texts: list[str]) -> tuple[np.ndarray, ...]:
        """Ids and mask of texts [N, T], image states, and the row of each text's image in these [N]; the same object is
        encoded once."""
        images = as_list(images, "image")
        if len(images) not in (1, len(texts)):
            raise UserError(f"{len(images)} images and {len(texts)} texts; give one text per image, or a single image")
        distinct = {id(image): image for image in images}
        index = {key: row for row, key in enumerate(distinct)}
        rows = np.array([index[id(image)] for image in images])
        states = self.encode(part, [*distinct.values()], "states")
        return *self.tokenize(part, texts), states, rows.repeat(len(texts) // len(images))

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return [join_words(text) for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]


def _no_vectors(part: Part) -> np.ndarray:
    return np.zeros((0, part.config["embed_dim"]), np.float32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="runner.py", description="Captions, answers and scores without torch.")
    parser.add_argument("image", help="image file")
    parser.add_argument("--caption", action="store_true", help="describe the image")
    parser.add_argument(
        "--match", action="append", default=[], metavar="TEXT", help="probability that TEXT describes it"
    )
    parser.add_argument("--answer", action="append", default=[], metavar="QUESTION", help="answer QUESTION about it")
    parser.add_argument("--beams", type=int, default=3, metavar="N", help="beams; 1 is greedy (default %(default)s)")
    args = parser.parse_args(argv)
    if not (args.caption or args.match or args.answer):
        parser.error("give --caption, --match or --answer")
    try:
        runner = Runner()
        if args.caption:
            print(*runner.caption([args.image], args.beams))
        if args.match:
            for text, value in zip(args.match, runner.match([args.image], args.match), strict=True):
                print(f"{value:.4f}  {text}")
        if args.answer:
            print(*runner.answer([args.image], args.answer, args.beams), sep="\n")
    except UserError as mistake:
        print(f"runner.py: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
