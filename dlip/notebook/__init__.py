"""Helpers of the notebooks, so that these hold text and results but hardly any code (needs the extra `notebooks`)."""

from dlip.notebook.controls import interact
from dlip.notebook.explorer import ATTRIBUTION_METHODS, AttentionExplorer
from dlip.notebook.kernel import setup
from dlip.notebook.live import anatomy, learn, recipe, short
from dlip.notebook.results import (
    advice,
    chart,
    column_table,
    findings,
    gain_chart,
    grid_table,
    records,
    shipped_records,
    verdicts,
)
from dlip.notebook.texts import compare_texts, gallery, photographs, score_table

__all__ = [
    "ATTRIBUTION_METHODS", "AttentionExplorer", "advice", "anatomy", "chart", "column_table", "compare_texts",
    "findings", "gain_chart", "gallery", "grid_table", "interact", "learn", "photographs", "recipe", "records",
    "score_table", "setup", "shipped_records", "short", "verdicts",
]  # fmt: skip
