"""Generated texts as HTML: escaped, with marked differences."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
from PIL import Image

from dlip.data.batch import Example, Question
from dlip.plots import COLORS, disagreement_cards, text_table


class ParsedPage(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_disagreement_cards():
    rows = pd.DataFrame([
        dict(image_id=7, asked="what <shape>?", teacher="a star", student="a <b>cross</b>", teacher_score=100.0,
             student_score=0.0, loss=100.0, measure="% accuracy"),
        dict(image_id=8, asked="", teacher="red star", student="red cross", teacher_score=120.0, student_score=30.0,
             loss=90.0, measure="% accuracy"),
    ])  # fmt: skip
    item = Example(
        np.zeros((48, 48, 3), np.uint8),
        7,
        ["a red star"],
        [Question("how many?", ["2"]), Question("what <shape>?", ["star", "sun"])],
    )
    page = ParsedPage(disagreement_cards(rows, {7: item}, "undistilled", ("big", "small")))
    said = " ".join(" ".join(page.text).split())
    for part in ("what <shape>?", "big, 100 a star", "<b>cross</b>", "true: star, sun", "small, 30 red cross"):
        assert part in said
    assert "in % accuracy: 100 on the first" in said
    assert "b" not in {tag for tag, _ in page.tags}
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["src"].startswith("data:image/png") and image["alt"] == "a red star"
    colors = [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "side"]
    assert [c.split()[-1] for c in colors] == [COLORS["teacher"], COLORS["undistilled"]] * 2
    assert "loses on no item" in disagreement_cards(rows.iloc[:0], {})


def test_text_table_marks_differences():
    items = [Example(Image.new("RGB", (8, 8), "red"), 1, ["a red star"], [Question("what color?", ["red"])])]
    said = [("big", "teacher", ["a red star"]), ("<small>", "distilled", ["a blue star"])]
    html = text_table(items, [""], said)
    assert "a <mark>blue</mark> star" in html and html.count("<mark>") == 1 and "&lt;small&gt;" in html
    assert COLORS["teacher"] in html and COLORS["distilled"] in html
    asked = text_table(items, ["what color?"], said)
    assert "<b>what color?</b><br>red" in asked
