"""Every figure, drawn with plotly from tables and arrays: one color per role, a title that states the finding.

Backgrounds are transparent and the ink is a gray that is readable on dark and light pages alike.
"""

from dlip.plots.accuracy_cost import accuracy_cost, pareto, score_rows
from dlip.plots.generated_text import disagreement_cards, text_table
from dlip.plots.grids import data_curves, gain_bars, module_curves
from dlip.plots.learning import learned_scores, learning_curves
from dlip.plots.losses import loss_curves, term_curves, terms
from dlip.plots.overlays import css_scale, overlay, overlays, peak
from dlip.plots.speed import latency_bars, memory_bars, throughput_curves
from dlip.plots.style import COLORS, LABELS, SYMBOLS

__all__ = [
    "COLORS", "LABELS", "SYMBOLS", "accuracy_cost", "css_scale", "data_curves", "disagreement_cards", "gain_bars",
    "latency_bars", "learning_curves", "learned_scores", "loss_curves", "memory_bars", "module_curves", "overlay",
    "overlays", "pareto", "peak", "score_rows", "term_curves", "terms", "text_table", "throughput_curves",
]  # fmt: skip
