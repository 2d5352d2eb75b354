"""The theme: system fonts, grays, one accent, and the role colors of the charts."""

from pathlib import Path

import gradio as gr

from dlip.plots.style import COLORS

FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
FOLDER = Path(__file__).parent
ICON = FOLDER / "icon.svg"

HEAD = f"<script>\n{(FOLDER / 'page.js').read_text()}</script>"


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", spacing_size="sm", radius_size="md", text_size="md", font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="#f5f6f8", body_background_fill_dark="#0e1116",
        block_background_fill="#ffffff", block_background_fill_dark="#161b22",
        block_border_color="#dde1e7", block_border_color_dark="#2b323c", block_border_width="1px", block_shadow="none",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_border_width="0px", block_label_text_color="#57606a", block_label_text_color_dark="#9aa4b2",
        block_title_text_weight="600", block_title_text_size="*text_sm",
        block_title_text_color="#57606a", block_title_text_color_dark="#9aa4b2",
        input_background_fill="#ffffff", input_background_fill_dark="#0e1116",
        input_placeholder_color="#57606a", input_placeholder_color_dark="#9aa4b2",
        input_border_color="#cfd6de", input_border_color_dark="#363e49", input_border_width="1px",
        input_border_color_focus="#0072B2", input_border_color_focus_dark="#56a6dd",
        button_primary_background_fill="#1f2937", button_primary_background_fill_hover="#374151",
        button_primary_background_fill_dark="#e6edf3", button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#0e1116",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_hover="#eef1f4",
        button_secondary_background_fill_dark="#1c232c", button_secondary_background_fill_hover_dark="#2b323c",
        button_secondary_border_color="#cfd6de", button_secondary_border_color_dark="#363e49",
        body_text_color="#1f2328", body_text_color_dark="#e6edf3",
        body_text_color_subdued="#57606a", body_text_color_subdued_dark="#9aa4b2",
    )  # fmt: skip


def css() -> str:
    """The style sheets, after the role colors as variables, as --teacher."""
    colors = " ".join(f"--{role}: {color};" for role, color in COLORS.items())
    return "\n".join([f":root {{ {colors} }}", *(sheet.read_text() for sheet in sorted(FOLDER.glob("*.css")))])
