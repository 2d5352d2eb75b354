"""The theme: system fonts, the style sheets, and the role colors of the charts."""

from pathlib import Path

import gradio as gr

from dlip.plots.style import COLORS

FOLDER = Path(__file__).parent
ICON = FOLDER / "icon.svg"
HEAD = "\n".join(f"<script>\n{(FOLDER / name).read_text()}</script>" for name in ("event_stream.js", "page.js"))


def theme() -> gr.themes.Base:
    """Sizes and fonts; the colors are in style.css."""
    return gr.themes.Base(
        primary_hue="slate",
        neutral_hue="slate",
        spacing_size="sm",
        radius_size="md",
        text_size="md",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


def css() -> str:
    """The style sheets, after the role colors as variables, as --teacher."""
    colors = " ".join(f"--{role}: {color};" for role, color in COLORS.items())
    return "\n".join([f":root {{ {colors} }}", *(sheet.read_text() for sheet in sorted(FOLDER.glob("*.css")))])
