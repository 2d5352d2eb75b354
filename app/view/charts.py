"""Charts of dlip.plots on the page: the finding as a heading that wraps, and links that download a file."""

import base64

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup

from dlip.plots.overlays import ZOOM_BUTTONS

from .parts import FOLDER

ON_POINT_CLICK = (FOLDER / "chart_clicks.js").read_text()
"""`js_on_load` of a gr.HTML around a chart: a click on a point stores its name in data-picked."""


def place(elem_id: str) -> tuple[gr.HTML, gr.Plot]:
    """Components for a chart: its heading and its figure."""
    return heading(elem_id), gr.Plot(show_label=False, container=False, elem_id=elem_id)


def heading(elem_id: str) -> gr.HTML:
    """Component for the heading of a chart, by which page.js names the chart."""
    return gr.HTML(elem_classes="finding", elem_id=f"{elem_id}-finding")


def responsive(fig: go.Figure) -> tuple[str, go.Figure]:
    """A figure's title as a heading, and the figure without it, as wide as its container."""
    title = fig.layout.title.text.replace("<br>", " ")
    margin = dict(l=8, r=fig.layout.margin.r - 28, t=34, b=8)
    fig.update_layout(title_text=None, autosize=True, margin=margin, height=fig.layout.height - 90, dragmode=False)
    fig.update_layout(modebar=dict(orientation="h", remove=ZOOM_BUTTONS), legend=dict(font_size=11, itemwidth=30))
    return f"<h3>{title}</h3>", fig


def updates(heading: str, fig: go.Figure | None) -> tuple[str, gr.Plot]:
    """Values for `place`; without a figure the plot is hidden."""
    return heading, gr.Plot(fig, visible=fig is not None)


def download_link(name: str, media_type: str, text: str) -> Markup:
    """A link that downloads a file contained in the page itself. media_type: as application/json."""
    data = base64.b64encode(text.encode()).decode()
    link = '<a class="download" download="{name}" href="data:{media_type};base64,{data}">{name}</a>'
    return Markup(link).format(name=name, media_type=media_type, data=data)
