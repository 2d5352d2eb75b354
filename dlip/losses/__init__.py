"""The loss terms, each a class that says all that the rest of the program must know of it.

A term of one's own is a subclass of `Term` with the decorator `register`; its name then works wherever weights are
written. L = sum of weight times term; an ablation is a table of weights.
"""

from dlip.losses import contrastive, matching, language, hidden_states, attention_maps, logits, tags  # noqa: F401, I001
from dlip.losses.term import TERMS, At, Setup, Term, register

__all__ = ["TERMS", "At", "Setup", "Term", "register"]
