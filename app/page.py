"""The page: two models named at the top, one picture, and a tab for each thing that can be asked of them.

Conventions of a tab, a module of this package with

    def tab(names, picture) -> None

called inside its own gr.Tab:

- `names` = (teacher, student), two gr.Dropdown whose values are model names; `picture`, a gr.Image whose value is a
  file's path or None. They go first into an event's inputs, `[picture, *names, ...]`. Nothing of a visitor is kept on
  the server: every event carries the names and the picture, so two visitors cannot meet. A tab may set `picture` as an
  output. Which tabs show the picture's panel is decided in style.css by the tab's elem_id.
- Pure functions do the work and know no gradio, so that tests call them without a browser: `def words(picture: str,
  teacher: str, student: str, ...) -> Words`, with `images.read(picture)`, `models.pair(teacher, student)` and `dlip`;
  they return a TypedDict (or dict, list) that is plain JSON, raise UserError, and stand above `tab` in its module.
- `events.endpoint(function, [picture, *names, ...])` makes such a function an endpoint named after it: its docstring
  and return type are what API users read. The page's own events show the same result, usually as HTML made by a pure
  function `show(result) -> str` (escape all text!), and say `api_visibility="private"` and `**events.QUICK`, or
  `**events.LONG` for what takes more than a second: the lines of the queue (an endpoint: `long=True`).
- Every event's function goes through `events.guarded(function)`: a UserError, or a fault, becomes one sentence on the
  page. It holds `models.turn` throughout; a generator or `long=True` takes `with models.turn:` itself around each step,
  so that others get in between.
- Looks: classes of style.css, with --teacher, --distilled, --undistilled; charts by dlip.plots. No inline colours, no
  addresses of other hosts, no files served.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from dlip.common.errors import UserError

from . import events, gate, images, models, room, shares, stream, traces
from .tabs import attention, compare, disagreements, search, speed, tradeoffs
from .view import parts, theme

TABS = {
    "compare": ("Compare", compare),
    "search": ("Search", search),
    "attention": ("Attention", attention),
    "speed": ("Speed", speed),
    "tradeoffs": ("Trade-offs", tradeoffs),
    "disagreements": ("Disagreements", disagreements),
}
WAITING = 128
"""Visitors in the queue, after whom the next ones are asked to come back."""
FILE = {"meta": {"_type": "gradio.FileData"}}
"""How gradio marks a file."""
TITLE = "<h1>DLIP Workbench</h1><p>What a student keeps of its teacher, and saves</p>"


def build() -> gr.Blocks:
    """The page, not yet served."""
    examples = images.examples()
    with gr.Blocks(
        title="DLIP Workbench", analytics_enabled=False, fill_width=True, delete_cache=(600, room.KEPT_S),
    ) as page:  # fmt: skip
        with gr.Row(elem_id="header"):
            gr.HTML(TITLE, scale=2, min_width=280)
            names = _names()
            tint = gr.HTML(_tint(models.first()[1]), elem_id="tint")
        with gr.Row(elem_id="body"):
            with gr.Column(scale=3, min_width=280, elem_id="picture-panel"):
                picture = gr.Image(
                    examples[0].image, type="filepath", image_mode=None, format="png", label="Picture",
                    elem_id="picture", sources=["upload", "clipboard", "webcam"], alt_text="the picture asked about",
                )  # fmt: skip
                picture.preprocess = images.brought  # images.read opens it, with its own words
                picture.example_payload = lambda: dict.fromkeys(("path", "url"), "picture.png") | FILE
                thumbs = [(parts.picture(example.image, ""), example.name, "") for example in examples]
                chooser = gr.HTML(parts.buttons(thumbs, "Examples"), js_on_load=parts.PICK, elem_id="examples")
                place = gr.JSON(visible=False)
                gr.HTML(parts.hint("Drop, paste or photograph a picture, or choose one of these."))
                strange, unreadable = gr.HTML(elem_id="strange"), gr.Checkbox(visible=False)
            with gr.Column(scale=8, min_width=320), gr.Tabs():
                returned = {}
                for name, (label, module) in TABS.items():
                    with gr.Tab(label, id=name, elem_id=name) as tab:
                        returned[name] = module.tab(names, picture)
                    tab.select(None, js=parts.RESIZE, api_visibility="private")

        def choose(place):
            example = examples[place]
            return example.image, example.question, "\n".join(example.captions)

        def estrange(picture, teacher, student):
            return compare.abroad(images.read(picture), (teacher, student)) if picture else ""

        def check(picture):
            if picture:
                images.read(picture)
            return False

        def refuse(said):
            events.toast(said)
            return True

        events.after([picture.change, *(name.change for name in names)])(events.following(estrange, events.nothing),
              [picture, *names], strange, api_visibility="private", show_progress="hidden", **events.QUICK)  # fmt: skip
        events.after([names[1].change])(_tint, names[1], tint, api_visibility="private", queue=False,
                                       show_progress="hidden", **events.LATEST)  # fmt: skip
        # an update of the picture itself, gr.skip() too, would make it anew, without the preprocess above
        # where a photograph is taken, gradio ends requests of the picture's own events like those of a camera's stream
        events.after([picture.input])(events.following(check, refuse), picture, unreadable, api_visibility="private",
              show_progress="hidden", **events.QUICK).then(None, unreadable, js=parts.CLEAR)  # fmt: skip
        gr.on([picture.input, picture.clear], None, js=parts.RELEASE, api_visibility="private")
        clicked = chooser.click(None, None, place, js=parts.picked("examples"), api_visibility="private")
        clicked.then(choose, place, [picture, *returned["compare"]], api_visibility="private", **events.CHOICE)
    return page


def _names() -> tuple[gr.Dropdown, gr.Dropdown]:
    teacher, student = models.first()
    info = None if models.fixed() else "or type a run folder or a hub id"
    options = dict(choices=models.choices(), allow_custom_value=not models.fixed(), interactive=True, min_width=200,
                   info=info)  # fmt: skip
    return (
        gr.Dropdown(value=teacher, label="Teacher", elem_id="teacher", **options),
        gr.Dropdown(value=student, label="Student", elem_id="student", **options),
    )


def _tint(student: str) -> str:
    """The colour of the student's role, for all that is the student's on the page."""
    return f"<style>:root {{ --student: var(--{models.role(student, 'student')}); }}</style>"


def serve(port: int | None = None, share: bool = False, names: list[str] | None = None) -> None:
    """Serves the page until it is interrupted.

    names: only these models can be chosen, the first two at the start; on a public address only the built-in ones where
    none are named. Raises UserError where a model cannot be loaded or the port is taken.
    """
    shipped = dict.fromkeys((models.TEACHER, models.STUDENT, *models.choices()))
    models.fix(names or (list(shipped) if share or public() else None))
    for name in models.first():
        models.load(name)
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="dlip-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # visitors' pictures: reachable while the app runs, and nothing else is
        page = build().queue(max_size=WAITING, api_open=False)
        shares.fair(page._queue)
        traces.bounded(page)
        events.legible(page)
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.getenv("NO_PROXY"), os.getenv("no_proxy"), *gate.OWN[:2]]))
        try:
            page.launch(
                server_port=port, share=share, quiet=True, prevent_thread_lock=True, ssr_mode=False, run_history=False,
                theme=theme.theme(), css=theme.css(), head=theme.HEAD + stream.STREAM, favicon_path=theme.ICON,
                footer_links=["api"], max_file_size=gate.FILE, state_session_capacity=traces.SESSIONS,
                app_kwargs={"middleware": gate.shut(own=not models.fixed())},
            )  # fmt: skip
        except (OSError, OverflowError):
            raise UserError(
                f"the app cannot listen on port {port or '7860 to 7959'}, which is taken or not allowed; choose another"
            ) from None
        except ValueError as error:  # gradio asks its own page whether it is there
            raise UserError(f"the app does not reach its own page ({error}); look at the proxy's settings") from None
        shares.hang_up(page.server)
        print(f"The app is at {page.share_url or page.local_url}; Ctrl-C stops it.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            page.close(verbose=False)
            models.turn.acquire(timeout=20)  # torch would abort the program if it still worked while that ends


def public() -> bool:
    """Whether others than this machine's users reach the page: as a Space, or where GRADIO_SERVER_NAME is an address
    that is not this machine's own."""
    return "SPACE_ID" in os.environ or os.environ.get("GRADIO_SERVER_NAME", gate.OWN[0]) not in gate.OWN


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP where it is not ignored (a closed terminal), end what is done here as Ctrl-C does, so that
    nothing of it is left behind, with the exit codes 143 and 129."""

    def end(number: int, _) -> None:
        raise SystemExit(128 + number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
