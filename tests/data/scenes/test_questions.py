"""Questions about scenes: answered again from the text by other means, and balanced."""

import re
from collections import Counter, defaultdict

import pytest

from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.questions import questions
from dlip.data.scenes.world import COLORS, SHAPES, SIZES, TEXTURES, Object, Scene

WHERE = "(left of|right of|above|below)"
DIRECTIONS = {"further left": "left of", "further right": "right of", "higher": "above", "lower": "below"}
FURTHER = f"({'|'.join(DIRECTIONS)})"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scenes("test").scene(i) for i in range(1000)]


def having(noun: str, scene: Scene) -> list[Object]:
    """The objects that fit "large red things", word by word."""
    words = [{"crosses": "cross", "cross": "cross"}.get(word, word.removesuffix("s")) for word in noun.split()]
    return [
        o for o in scene.objects if all(w in ("thing", "object", o.size, o.texture, o.color, o.shape) for w in words)
    ]


def one(noun: str, scene: Scene) -> Object:
    (o,) = having(noun, scene)
    return o


def way(a: Object, b: Object) -> str:
    """Position of a's center relative to b's, along the axis of the larger gap, which is at least visible."""
    across, down = a.x + a.width / 2 - b.x - b.width / 2, a.y + a.width / 2 - b.y - b.width / 2
    assert max(abs(across), abs(down)) >= 1.3 * min(abs(across), abs(down)) and max(abs(across), abs(down)) >= 8
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def answer(text: str, scene: Scene) -> str:
    """The answer, derived from the words of the question."""
    if match := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if having(match[1], scene) else "no"
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return ["zero", "one", "two", "three", "four", "five"][len(having(match[1], scene))]
    if match := re.fullmatch(r"what (size|texture|color|shape) is the (.+)\?", text):
        return getattr(one(match[2], scene), match[1])
    if match := re.fullmatch(r"are there more (\S+) or (\S+?)( things)?\?", text):
        numbers = {noun: len(having(noun, scene)) for noun in (match[1], match[2])}
        assert len(set(numbers.values())) == 2
        return max(numbers, key=numbers.get)
    if match := re.fullmatch(r"which is (larger|smaller), the (.+) or the (.+)\?", text):
        widths = {noun: one(noun, scene).width for noun in match.groups()[1:]}
        assert abs(widths[match[2]] - widths[match[3]]) >= 5
        return {"larger": max, "smaller": min}[match[1]](widths, key=widths.get).removesuffix(" thing")
    if match := re.fullmatch(rf"which is {FURTHER}, the (.+) or the (.+)\?", text):
        direction = DIRECTIONS[match[1]]
        for a, b in (match.groups()[1:], match.groups()[:0:-1]):
            if way(one(a, scene), one(b, scene)) == direction:
                return a.removesuffix(" thing")
    match = re.fullmatch(rf"what is {WHERE} the (.+)\?", text)
    b = one(match[2], scene)
    axis, sign = ("x", -1) if "left" in match[1] else ("x", 1) if "right" in match[1] else ("y", 0)
    sign = sign or (-1 if match[1] == "above" else 1)
    beyond = [
        o
        for o in scene.objects
        if o is not b and sign * (getattr(o, axis) + o.width / 2 - getattr(b, axis) - b.width / 2) >= 5
    ]
    (a,) = beyond  # no other object in that direction
    assert way(a, b) == match[1]
    return a.shape


def test_every_answer_follows_from_image_and_question(scenes):
    for scene in scenes:
        generated = questions(scene)
        types = Counter(q.type for q in generated)
        assert types == {"existence": 1, "counting": 1, "attribute": 1, "comparison": 1, "relation": 2}
        for question in generated:
            assert question.answers == [answer(question.text, scene)], (question, scene)


def test_answers_are_balanced(scenes):
    answers, which = defaultdict(Counter), Counter()
    for scene in scenes:
        for question in questions(scene):
            answer = question.answers[0]
            answers[question.type][answer] += 1
            if match := re.fullmatch(r"which is (.+), the (.+) or the .+\?", question.text):
                which[match[1], match[2].removesuffix(" thing") == answer] += 1
    assert abs(answers["existence"]["yes"] - answers["existence"]["no"]) < 100
    sizes = [which[comparative, first] for comparative in ("larger", "smaller") for first in (True, False)]
    places = [which[comparative, first] for comparative in DIRECTIONS for first in (True, False)]
    assert max(sizes) - min(sizes) < 40 and max(places) - min(places) < 60
    assert set(answers["attribute"]) == {*SIZES, *TEXTURES, *COLORS, *SHAPES}
    assert set(answers["counting"]) == {"zero", "one", "two", "three", "four", "five"}
    assert max(answers["counting"].values()) < 330 and min(answers["counting"].values()) > 40
