"""What the browser tests share."""

import dlip
from app import images

TRIO = ("scenes/teacher", "scenes/student", "scenes/student-undistilled")
"""Models of the Compare tab's cards."""
EXAMPLES = sorted(images.examples(), key=lambda example: images.kind(example.image) != "scenes")
"""The page's examples in their order where these models are the only ones."""


def wait_for_cards(page, where: str, expected: list[str]) -> None:
    """Wait until the cards show these texts; a marked gap stands for words that only the other has."""
    page.wait_for_function(
        """([where, expected]) => expected === [...document.querySelectorAll(`#${where} .said`)]
            .map(e => e.innerText.split(/\\s+/).filter(Boolean).join(" ")).join("|")""",
        arg=[where, "|".join(expected)],
    )


def captions_of(image, *models, **options) -> list[str]:
    return [dlip.load(name).caption([image], **{"max_new_tokens": 30, **options})[0] for name in models]
