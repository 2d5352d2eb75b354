"""Controls that draw a picture anew; without them the first picture still stands there."""

from collections.abc import Callable, Sequence

from dlip.plots import LABELS


class Controls:
    """What a reader has chosen: `choice["size"]`, read by later cells."""

    def __init__(self, boxes: dict):
        self.boxes = boxes

    def __getitem__(self, name: str):
        return self.boxes[name].value

    def values(self) -> dict:
        return {name: box.value for name, box in self.boxes.items()}

    @property
    def weights(self) -> str:
        """The sliders, which are named as loss terms or groups of them, as `dlip train --weights` takes them."""
        return weights_text({name: value for name, value in self.values().items() if isinstance(value, float)})


def weights_text(weights: dict[str, float]) -> str:
    """`vlp=1,hr=0.5`, without those of weight 0."""
    return ",".join(f"{name}={weight:g}" for name, weight in weights.items() if weight)


def play(draw: Callable, **choices: Sequence | float) -> Controls:
    """Shows controls, and below them what `draw` returns for their values, drawn anew whenever one is changed.

    choices: keyword of `draw` -> a number, which becomes a slider from 0 to four times as much (or to 4), or its
    values, or pairs (label, value); the first is where it starts. Returns the controls.
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
    shown = display(bundle(draw(**controls.values())), raw=True, display_id=True)
    for box in boxes.values():
        box.observe(lambda _: shown.update(bundle(draw(**controls.values())), raw=True), "value")
    return controls


def _label(value) -> str:
    """A column of the records by its name, anything else as it is."""
    return LABELS[value][0] if value in LABELS else str(value)


def bundle(shown) -> dict:
    """Mime type -> content, as a display that can be updated takes it; of a figure, its data and its title."""
    from IPython import get_ipython

    from dlip.notebook.page import PLOTLY

    if hasattr(shown, "to_plotly_json"):
        import json

        title = (shown.layout.title.text or "a figure").replace("<br>", " ")
        return {PLOTLY: json.loads(shown.to_json()), "text/plain": title}
    return get_ipython().display_formatter.format(shown)[0]
