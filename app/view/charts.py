"""Charts of dlip.plots on the page: their findings as headings that wrap, and links that hold a file."""

import base64
from html import escape

import gradio as gr
import plotly.graph_objects as go

from dlip.plots.overlays import ZOOM_BUTTONS


def place(elem_id: str) -> tuple[gr.HTML, gr.Plot]:
    """Where a chart goes: its heading and itself."""
    return finding(elem_id), gr.Plot(show_label=False, container=False, elem_id=elem_id)


def finding(elem_id: str) -> gr.HTML:
    """Where the heading of a chart goes, by which theme.HEAD names it."""
    return gr.HTML(elem_classes="finding", elem_id=f"{elem_id}-finding")


def fitted(fig: go.Figure) -> tuple[str, go.Figure]:
    """A figure's title as a heading, and the figure without it, as wide as there is room for, on phones too."""
    title = fig.layout.title.text.replace("<br>", " ")
    margin = dict(l=8, r=fig.layout.margin.r - 28, t=34, b=8)
    fig.update_layout(title_text=None, autosize=True, margin=margin, height=fig.layout.height - 90, dragmode=False)
    fig.update_layout(modebar=dict(orientation="h", remove=ZOOM_BUTTONS), legend=dict(font_size=11, itemwidth=30))
    return f"<h3>{title}</h3>", fig


def filled(heading: str, fig: go.Figure | None) -> tuple[str, gr.Plot]:
    """What `place` is given: the chart, or no room where there is none."""
    return heading, gr.Plot(fig, visible=fig is not None)


def link(name: str, kind: str, text: str) -> str:
    """A link that downloads a file which lies in the page itself. kind: as application/json."""
    data = base64.b64encode(text.encode()).decode()
    return f'<a class="download" download="{escape(name)}" href="data:{kind};base64,{data}">{escape(name)}</a>'
