"""What several tests of plots share."""

import plotly.graph_objects as go


def traces_by_name(fig: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in fig.data}
