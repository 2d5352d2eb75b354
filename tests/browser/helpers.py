"""What several browser tests share."""

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


def type_text(field, text: str) -> None:
    """Types as a person does: a field that was just opened overwrites its value once, a moment later."""
    field.wait_for()
    field.page.wait_for_timeout(1000)
    field.fill(text)
    field.page.wait_for_timeout(500)  # until the page has read the text
    assert field.input_value() == text


def delay_requests(page, route: str, *ms: int) -> None:
    """Delays the page's next requests to addresses that contain `route` by these milliseconds, in this order."""
    page.evaluate(
        """([route, ms]) => {
            const fetch = window.fetch
            window.fetch = async (...request) => {
                if (String(request[0]).includes(route)) await new Promise(done => setTimeout(done, ms.shift() ?? 0))
                return fetch(...request)
            }
        }""",
        [route, ms],
    )


def captions_of(image, *models, **options) -> list[str]:
    return [dlip.load(name).caption([image], **{"max_new_tokens": 30, **options})[0] for name in models]
