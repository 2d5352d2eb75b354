"""Bookkeeping of beam search without a tensor library, for torch (`generate.py`) and ONNX (`export/onnx_runner.py`).

Beam search as `transformers` has it: 2k candidates a step, a finished text ([SEP] included) scores its mean
log-probability, and a text is done when no running beam can still beat the worst of its k finished ones.
"""


class BeamSearch:
    """The running and finished beams of a batch of texts.

    prompts: the tokens that each text starts with; k: beams of each; end: the token that finishes a text; max_steps:
    new tokens at most; no_repeat_ngram_size: as in `repeating`.
    """

    def __init__(
        self, prompts: list[list[int]], k: int, end: int, max_steps: int, no_repeat_ngram_size: int = 0
    ):  # fmt: skip
        self.k, self.end, self.max_steps, self.step = k, end, max_steps, 0
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.active = list(range(len(prompts)))
        """Texts whose beams still run, in the order of the rows that `advance` takes."""
        self.running = [[prompt] * k for prompt in prompts]
        self.finished: list[list[tuple[float, list[int]]]] = [[] for _ in prompts]
        """The k best of each text, the best first: mean log-probability of a new token, and all tokens."""

    def repeats(self) -> tuple[list[int], list[int], list[int]] | None:
        """Row, beam and next token of all that `repeating` names; the caller gives these tokens probability 0."""
        found = [
            (row, beam, token)
            for row, text in enumerate(self.active)
            for beam, tokens in enumerate(self.running[text])
            for token in repeating(tokens, self.no_repeat_ngram_size)
        ]
        return tuple(map(list, zip(*found, strict=True))) if found else None

    def advance(
        self, scores: list[list[float]], beams: list[list[int]], tokens: list[list[int]]
    ) -> tuple[list[int], list[list[int]], list[list[int]], list[list[float]]] | None:
        """Take the 2k candidates of each active text, the best first: summed log-probability, beam, next token.

        Returns None when all texts are done. Else, for A' texts that stay active: their rows among those passed, [A'],
        and of each of their k beams, [A', k], the beam it continues, its next token and its score.
        """
        k, self.step, going = self.k, self.step + 1, {}
        last = self.step == self.max_steps
        for row, text in enumerate(self.active):
            candidates = list(zip(scores[row], beams[row], tokens[row], strict=True))
            ended = [
                (score / self.step, [*self.running[text][beam], token])
                for score, beam, token in candidates[:k]
                if last or token == self.end
            ]
            finished = self.finished[text] = sorted([*self.finished[text], *ended], key=lambda x: -x[0])[:k]
            open_beams = [candidate for candidate in candidates if candidate[2] != self.end][:k]
            if not last and (len(finished) < k or open_beams[0][0] / self.step > finished[-1][0]):
                going[row] = open_beams
        if not going:
            return None
        rows = fill_gaps(list(going))
        self.active = [self.active[row] for row in rows]
        for text, row in zip(self.active, rows, strict=True):
            self.running[text] = [[*self.running[text][beam], token] for _, beam, token in going[row]]
        scores, beams, tokens = ([[beam[part] for beam in going[row]] for row in rows] for part in range(3))
        return rows, beams, tokens, scores


def repeating(tokens: list[int], size: int) -> list[int]:
    """The next tokens with which the text would have an n-gram of `size` tokens twice; none if it is 0."""
    start = len(tokens) - size + 1
    if not size:
        return []
    return [tokens[i + size - 1] for i in range(start) if tokens[i : i + size - 1] == tokens[start:]]


def fill_gaps(rows: list[int]) -> list[int]:
    """Reorder ascending row numbers so that compacting to them moves the fewest: the last rows fill the gaps."""
    kept, last = set(rows), [row for row in rows if row >= len(rows)]
    return [row if row in kept else last.pop() for row in range(len(rows))]
