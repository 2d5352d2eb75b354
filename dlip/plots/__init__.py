"""Every figure, drawn with plotly from tables and arrays: one colour a role, a title that says the finding.

Backgrounds are transparent and the ink is a grey that reads on dark and light pages alike.
"""

from dlip.plots.bars import gain_bars
from dlip.plots.cards import cards
from dlip.plots.cost import accuracy_cost, pareto
from dlip.plots.losses import loss_curves, terms
from dlip.plots.modules import module_curves
from dlip.plots.overlays import overlay, overlays
from dlip.plots.style import COLOURS, LABELS, SYMBOLS

__all__ = [
    "COLOURS", "LABELS", "SYMBOLS", "accuracy_cost", "cards", "gain_bars", "loss_curves", "module_curves", "overlay",
    "overlays", "pareto", "terms",
]  # fmt: skip
