"""Captions, answers and scores from a folder of ONNX graphs: numpy, Pillow, onnxruntime and tokenizers, nothing else.

`dlip export MODEL --to onnx` puts this file there as runner.py, with the two it imports (dlip/export/onnx_export.py).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from dlip.common.errors import UserError
from dlip.data.transforms import as_list, load_image, resize_square

ImageInput = Image.Image | np.ndarray | str | Path


class Part:
    """The graphs of one model, each opened when it is first run. config: an entry of config.json's "parts"."""

    def __init__(self, folder: Path, config: dict, threads: int):
        self.folder, self.config, self.threads, self.sessions = folder, config, threads, {}

    def run(self, graph: str, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
        if graph not in self.sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.add_session_config_entry("session.x64quantprecision", "1")  # no overflow on processors without VNNI
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # who waits leaves its core
            self.sessions[graph] = onnxruntime.InferenceSession(
                self.folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[graph].run(outputs, inputs)

    def search(self, context: np.ndarray, mask: np.ndarray, prompt: list[int], k: int, new: int) -> list[list[int]]:
        """The best text of each context [B, S, Di], up to its [SEP], without the prompt: beam search with `k` beams.

        The steps are those of dlip/models/generate.py; one beam is greedy. mask bool [B, S]; `new` tokens at most.
        Raises UserError for more beams than there are words for.
        """
        c, b = self.config, len(context)
        if 2 * k > c["vocab_size"]:
            raise UserError(f"{k} beams are too many; this model has words for {c['vocab_size'] // 2} at most")
        names = [f"cross{i}" for i in range(c["cross"])]
        cross = dict(zip(names, self.run("context", names, context=context), strict=True))
        past = np.zeros((c["layers"], 2, b, k, c["heads"], 0, c["head_width"]), np.float32)
        for token in prompt:
            scores, words, past = self._step(np.full((b, k), token), past, mask, cross)  # scores, words [B, k, 2k]
        total = np.full((b, k), -1e9, np.float32)
        total[:, 0] = 0  # all beams are the same at first
        texts, best, open_ = [[[]] * k for _ in range(b)], [[] for _ in range(b)], [True] * b
        new = min(new, c["max_positions"] - len(prompt))
        for step in range(new):
            sums, words = (total[..., None] + scores).reshape(b, -1), words.reshape(b, -1)
            places = np.argsort(-sums, kind="stable")[:, : 2 * k]  # [B, 2k]; no more than k of them can end
            values, words = (np.take_along_axis(of, places, 1).tolist() for of in (sums, words))
            last, running = step == new - 1, []  # of each picture its k best (score, beam, word) that go on
            for i in range(b):
                continued = list(zip(values[i], (places[i] // (2 * k)).tolist(), words[i], strict=True))
                ended = [last or word == c["sep_id"] for _, _, word in continued]
                if open_[i]:
                    best[i] += [
                        (value / (step + 1), [*texts[i][beam], word])
                        for (value, beam, word), over in zip(continued[:k], ended, strict=False)
                        if over
                    ]
                    best[i] = sorted(best[i], key=lambda x: -x[0])[:k]
                running.append([one for one, over in zip(continued, ended, strict=True) if not over][:k])
                if open_[i] and len(best[i]) == k and not last:
                    open_[i] = running[i][0][0] / (step + 1) > best[i][-1][0]
            if last or not any(open_):
                break
            texts = [[[*own[beam], word] for _, beam, word in some] for own, some in zip(texts, running, strict=True)]
            total = np.array([[value for value, _, _ in some] for some in running], np.float32)
            beams, token = (np.array([[one[at] for one in some] for some in running]) for at in (1, 2))
            past = past[:, :, np.arange(b)[:, None], beams]
            scores, words, past = self._step(token, past, mask, cross)
        rows = [found[0][1] if found else [] for found in best]
        return [row[: row.index(c["sep_id"])] if c["sep_id"] in row else row for row in rows]

    def _step(self, token: np.ndarray, past: np.ndarray, mask: np.ndarray, cross: dict) -> list[np.ndarray]:
        return self.run("decoder", ["scores", "words", "present"], token=token, past=past, mask=mask, **cross)


class Runner:
    """An exported model; its methods take and give what those of `dlip.vlm.VLM` do, as numpy arrays.

    threads: of onnxruntime; 0 leaves the choice to it. Raises UserError for what the model cannot do.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent, threads: int = 0):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.parts = [Part(folder / part["folder"], part, threads) for part in self.config["parts"]]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.config["max_text"])
        self.tokenizer.enable_padding(pad_id=self.config["pad_id"], pad_token="[PAD]")

    def part(self, task: str) -> Part:
        for part in self.parts:
            if task in part.config["tasks"]:
                return part
        raise UserError(self.config["left_out"][task])

    def caption(self, images: list[ImageInput], num_beams: int = 3, max_new_tokens: int = 20) -> list[str]:
        """One caption a picture, without the prompt."""
        part = self.part("lm")
        states = self._look(part, images, "states")
        prompt, mask = [part.config["dec_id"], *part.config["prompt_ids"]], np.ones(states.shape[:2], bool)
        return self._say(part.search(states, mask, prompt, num_beams, max_new_tokens))

    def answer(self, images: list[ImageInput], questions: list[str], num_beams: int = 3) -> list[str]:
        """The answer to each picture's question; one picture may be asked several."""
        part = self.part("vqa")
        ids, mask, states = self._pairs(part, images, questions)
        (context,) = part.run("fusion", ["question"], ids=ids, mask=mask, states=states)
        return self._say(part.search(context, mask, [part.config["dec_id"]], num_beams, self.config["answer_tokens"]))

    def match(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITM probability that each text describes its picture [N]; one picture may come with several texts."""
        other, fits = self.match_logits(images, texts).T
        return 1 / (1 + np.exp(other - fits))

    def match_logits(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITM's logits [N, 2] that `match` is made of, that of a text that fits second."""
        part = self.part("itm")
        ids, mask, states = self._pairs(part, images, texts)
        return part.run("fusion", ["match"], ids=ids, mask=mask, states=states)[0]

    def similarity(self, images: list[ImageInput], texts: list[str]) -> np.ndarray:
        """ITC cosine of every picture with every text [I, T]."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def embed_images(self, images: list[ImageInput]) -> np.ndarray:
        return self._look(self.part("itc"), images, "vector")  # unit vectors [I, E]

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        ids, mask = self._read(texts)
        return self.part("itc").run("text", ["vector"], ids=ids, mask=mask)[0]  # unit vectors [T, E]

    def _look(self, part: Part, images: list[ImageInput], output: str) -> np.ndarray:
        side = part.config["image_size"]
        pixels = np.stack(
            [resize_square(load_image(image), side) for image in as_list(images, "picture")]
        )  # [B, S, S, 3]
        return part.run("image", [output], pixels=pixels)[0]

    def _read(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = self.tokenizer.encode_batch(as_list(texts, "text"))
        return np.array([one.ids for one in found]), np.array([one.attention_mask for one in found], bool)  # [N, T]

    def _pairs(self, part: Part, images: list, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, texts = as_list(images, "picture"), as_list(texts, "text")
        if len(images) not in (1, len(texts)):
            raise UserError(
                f"pictures and texts differ in number: {len(images)} and {len(texts)}; give one text a picture"
            )
        states = self._look(part, images, "states")
        return *self._read(texts), states.repeat(len(texts) // len(states), 0)

    def _say(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.decode_batch(rows, skip_special_tokens=True)


def main(words: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="runner.py", description="Captions, answers and scores without torch.")
    top.add_argument("picture")
    top.add_argument("--caption", action="store_true", help="say what is to be seen")
    top.add_argument("--match", action="append", default=[], metavar="TEXT", help="probability that it fits")
    top.add_argument("--answer", action="append", default=[], metavar="QUESTION")
    top.add_argument("--beams", type=int, default=3, metavar="N", help="1 is greedy (default %(default)s)")
    args = top.parse_args(words)
    if not (args.caption or args.match or args.answer):
        top.error("ask for --caption, --match or --answer")
    if args.beams < 1:
        top.error("--beams is 1 or more")
    try:
        runner = Runner()
        if args.caption:
            print(*runner.caption([args.picture], args.beams))
        if args.match:
            for text, value in zip(args.match, runner.match([args.picture], args.match), strict=True):
                print(f"{value:.4f}  {text}")
        if args.answer:
            print(*runner.answer([args.picture], args.answer, args.beams), sep="\n")
    except UserError as mistake:
        print(f"runner.py: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
