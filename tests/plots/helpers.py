"""What several tests of plots share."""

import re

import plotly.graph_objects as go


def title_of(fig: go.Figure) -> str:
    """The title on one line."""
    return fig.layout.title.text.replace("<br>", " ")


def numbers_of(fig: go.Figure) -> list[str]:
    """The numbers of the title with their signs and percent signs, without those in names such as TR@1."""
    return re.findall(r"(?<![\w@.,-])[+−]?\d+(?:[.,]\d+)*%?", title_of(fig))


def traces_by_name(fig: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in fig.data}
