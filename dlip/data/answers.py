"""Answers to questions, normalized as VQA's official evaluation compares them.

Source: Antol et al., VQA (arXiv 1505.00468), and the evaluation script of visualqa.org.
"""

import re

NUMBERS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {w[: m.start()] + w[m.end() :]: w for w in _CONTRACTIONS for m in re.finditer("'", w)}
"""A contraction that lacks one apostrophe -> the contraction."""


def normalize(answer: str) -> str:
    """An answer as the official evaluation compares it.

    A punctuation mark becomes a space, or nothing if the answer has it next to a space or has a comma between digits.
    Periods go, save before a digit. Then lower case, number words as digits, no articles, apostrophes restored.
    """
    text = out = " ".join(answer.split())
    thousands = re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        out = out.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", out).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
