"""Interactive controls above a figure or table; without a kernel the first output remains."""

import json
from collections.abc import Callable, Sequence

from IPython import get_ipython

from dlip.plots import LABELS

PLOTLY_MIME = "application/vnd.plotly.v1+json"


class Controls:
    """The current values of controls: `choice["size"]`."""

    def __init__(self, boxes: dict):
        self.boxes = boxes

    def __getitem__(self, name: str):
        return self.boxes[name].value

    def values(self) -> dict:
        return {name: box.value for name, box in self.boxes.items()}

    @property
    def weights(self) -> str:
        """The sliders, named as loss terms or groups, as a value of `dlip train --weights`."""
        return weights_text({name: value for name, value in self.values().items() if isinstance(value, float)})


def weights_text(weights: dict[str, float]) -> str:
    """`vlp=1,hr=0.5`, without weights of 0."""
    return ",".join(f"{name}={weight:g}" for name, weight in weights.items() if weight)


def interact(draw: Callable, **choices: Sequence | float) -> Controls:
    """Display controls and the result of `draw(**values)` below, redrawn on every change. Returns the controls.

    choices: keyword of `draw` -> a number (a slider from 0 to four times the number, or to 4), or a list of values or
    (label, value) pairs; the first one is selected initially.
    """
    import ipywidgets
    from IPython.display import display

    boxes = {}
    for name, choice in choices.items():
        if isinstance(choice, int | float):
            boxes[name] = ipywidgets.FloatSlider(
                choice, min=0, max=4 * choice or 4, step=0.25, description=name, continuous_update=False
            )
        else:
            pairs = [value if isinstance(value, tuple) else (_label(value), value) for value in choice]
            boxes[name] = ipywidgets.Dropdown(options=pairs, value=pairs[0][1], description=name)
        boxes[name].style.description_width = "initial"
    controls = Controls(boxes)
    display(ipywidgets.HBox(list(boxes.values()), layout={"flex_flow": "row wrap"}))
    handle = display(mime_bundle(draw(**controls.values())), raw=True, display_id=True)
    for box in boxes.values():
        box.observe(lambda _: handle.update(mime_bundle(draw(**controls.values())), raw=True), "value")
    return controls


def _label(value) -> str:
    """The name of a column of the records; anything else as text."""
    return LABELS[value][0] if value in LABELS else str(value)


def mime_bundle(value) -> dict:
    """MIME type -> content of a value, for a display that can be updated; of a figure, its JSON and its title."""
    if hasattr(value, "to_plotly_json"):
        title = (value.layout.title.text or "a figure").replace("<br>", " ")
        return {PLOTLY_MIME: json.loads(value.to_json()), "text/plain": title}
    return get_ipython().display_formatter.format(value)[0]
