"""What the notebooks share, so that they hold words and results and hardly any code (needs the extra `notebooks`)."""

from dlip.notebook.controls import Controls, play
from dlip.notebook.live import Learnt, anatomy, learn, recipe, short, watch
from dlip.notebook.looker import METHODS, Looker
from dlip.notebook.page import advice, chart, findings, gains, measures, opening, records, shipped, table, verdicts
from dlip.notebook.said import compare, gallery, scores

__all__ = [
    "METHODS", "Controls", "Learnt", "Looker", "advice", "anatomy", "chart", "compare", "findings", "gains",
    "gallery", "learn", "measures", "opening", "play", "recipe", "records", "scores", "shipped", "short", "table",
    "verdicts", "watch",
]  # fmt: skip
