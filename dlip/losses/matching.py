"""Image-text matching loss."""

from torch import Tensor

from dlip.losses.term import At, Term, cross_entropy, register


@register("itm", group="vlp")
class Matching(Term):
    """Image-text matching: binary cross-entropy of "match" over true pairs and hard negatives.

    logits [N, 2], labels [N]: B true pairs, then for each image a wrong text and for each text a wrong image, drawn in
    proportion to their ITC similarity. Source: BLIP (arXiv 2201.12086), section 3.2; ALBEF (arXiv 2107.07651), 3.2.
    """

    ability = "itm"

    def forward(self, at: At) -> Tensor:
        return cross_entropy(at.student.logits["itm"], at.student.labels["itm"])
