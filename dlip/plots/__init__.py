"""Every figure, drawn with plotly from tables and arrays: one colour a role, a title that says the finding.

Backgrounds are transparent and the ink is a grey that reads on dark and light pages alike.
"""

from dlip.plots.bars import gain_bars
from dlip.plots.cards import cards
from dlip.plots.cost import accuracy_cost, pareto
from dlip.plots.data import data_curves
from dlip.plots.losses import loss_curves, terms
from dlip.plots.modules import module_curves
from dlip.plots.overlays import css_scale, overlay, overlays, peak
from dlip.plots.scores import score_rows
from dlip.plots.speed import latency_bars, memory_bars, throughput_curves
from dlip.plots.style import COLOURS, LABELS, SYMBOLS
from dlip.plots.training import term_curves
from dlip.plots.words import words

__all__ = [
    "COLOURS", "LABELS", "SYMBOLS", "accuracy_cost", "cards", "css_scale", "data_curves", "gain_bars",
    "latency_bars", "loss_curves", "memory_bars", "module_curves", "overlay", "overlays", "pareto", "peak",
    "score_rows", "term_curves", "terms", "throughput_curves", "words",
]  # fmt: skip
