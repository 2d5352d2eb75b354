"""Losses of generated texts: the next token of a caption and of an answer. Source: BLIP (arXiv 2201.12086)."""

from torch import Tensor

from dlip.losses.term import At, Setup, Term, cross_entropy, register


class NextToken(Term):
    """Cross-entropy of the next token, with the label smoothing of the configuration."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.smoothing = setup.config.label_smoothing

    def forward(self, at: At) -> Tensor:
        return cross_entropy(at.student.logits[self.ability], at.student.labels[self.ability], self.smoothing)


@register("lm", group="vlp")
class Captions(NextToken):
    """Language modeling: cross-entropy of a caption's next token given its image.

    logits [B, T, V], labels [B, T]. Source: section 3.2.
    """

    averages_over = "next tokens"
    ability = "lm"


@register("vqa", group="vlp")
class Answers(NextToken):
    """Answers: cross-entropy of an answer's next token given the question fused with its image.

    logits [N, A, V], labels [N, A] of N questions. Source: section 5.3 (VQA as answer generation); beyond DLIP.
    """

    needs = "questions"
    averages_over = "answer tokens"
    ability = "vqa"
