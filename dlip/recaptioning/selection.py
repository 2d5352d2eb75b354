"""Which captions of an image a data set gets: those that score well, in a stated ratio to human ones."""

from dlip.recaptioning.config import SelectionConfig


def select(own: list[str], written: list[str], scores: list[float] | None, config: SelectionConfig) -> list[str]:
    """The written captions of an image that are kept, the best first; without scores in the order of writing.

    Empty ones go, and those that repeat another or one of the image's own.
    """
    places, seen = [], {"", *own}
    for i, caption in enumerate(written):
        if caption not in seen:
            places.append(i)
            seen.add(caption)
    if scores is not None:
        places = sorted(places, key=lambda i: -scores[i])
        places = [i for i in places if config.threshold is None or scores[i] >= config.threshold][: config.keep]
    return [written[i] for i in places]


def mix(human: list[str], written: list[str], share: float | None) -> tuple[list[str], list[str]]:
    """The human and the written captions of an image after dropping the last ones of one kind, so that the human share
    of all is as near to `share` as can be, 0 to 1; None keeps all.

    A share between 0 and 1 leaves at least one of each kind, and an image that has one kind only as it is.
    """
    if share in (0, 1):
        return (human, []) if share else ([], written)
    if share is None or not human or not written:
        return human, written
    humans, others = round(len(written) * share / (1 - share)), round(len(human) * (1 - share) / share)
    return human[: max(1, humans)], written[: max(1, others)]
