"""The page: two models at the top, one image, and a tab for each way to compare them on it.

A tab is a module of `app.tabs`. Its pure functions take names and an image, load models with `models.pair`, and return
JSON as a TypedDict; `endpoints.api` or `endpoints.offer` makes them endpoints. Its `tab(image, names, subject)` adds
the components, and the events that show the same results as HTML. `subject.change` is the event of another image or
model. The server keeps no state of a visitor.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dlip.common.errors import UserError

from . import gallery, images, models
from .endpoints import PAGE, QUICK, answered, stop_job
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
MAX_QUEUE = 128
"""Requests in the queue; further ones are refused."""
MAX_SESSIONS = 128
"""Maximum number of sessions that gradio keeps in memory (about 200 KB each, one for each call of the API)."""
KEEP_UPLOADS_S = 3600
"""Seconds after which uploaded images are deleted."""
MAX_FILE = 20 << 20
"""Bytes of an uploaded file."""
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names by which only this machine's users reach the app."""
TITLE = "<h1>DLIP Workbench</h1><p>What a student keeps of its teacher, and saves</p>"
SUBJECT = "(image, teacher, student) => JSON.stringify([image?.path, teacher, student])"


def build() -> gr.Blocks:
    """The page, not yet served."""
    examples = images.examples()
    with gr.Blocks(
        title="DLIP Workbench", analytics_enabled=False, fill_width=True, delete_cache=(600, KEEP_UPLOADS_S)
    ) as page:
        with gr.Row(elem_id="header"):
            gr.HTML(TITLE, scale=2, min_width=280)
            names = _model_dropdowns()
            student_color = gr.HTML(_student_color(models.defaults()[1]), elem_id="student-color")
        subject, place = gr.Textbox(visible=False), gr.JSON(visible=False)
        with gr.Row(elem_id="body"):
            with gr.Column(scale=3, min_width=280, elem_id="image-panel"):
                image = gr.Image(
                    examples[0].image,
                    type="filepath",
                    image_mode=None,
                    format="png",
                    label="Image",
                    show_label=False,
                    sources=["upload", "clipboard", "webcam"],
                    alt_text="the image that the models are shown",
                    elem_id="image",
                )
                image.preprocess = images.uploaded  # `images.read` reads all kinds, and names what is wrong
                thumbnails = [(parts.thumbnail(example.image, ""), example.name) for example in examples]
                buttons = parts.image_buttons(thumbnails, "Examples")
                choices = gr.HTML(buttons, js_on_load=parts.ON_PICK, elem_id="examples")
                gr.HTML(parts.hint("Drop, paste or photograph an image, or choose one of these."))
                hint = gr.HTML(elem_id="domain-hint")
            with gr.Column(scale=8, min_width=320), gr.Tabs():
                returned = {}
                for name, (label, module) in TABS.items():
                    with gr.Tab(label, id=name, elem_id=name) as tab:
                        returned[name] = module.tab(image, names, subject)
                    tab.select(None, js=parts.RESIZE_CHARTS)
        sentence, hits, hit = returned["search"]

        def choose_example(place, teacher, student):
            example = examples[place]
            pair = models.pair_for(images.kind(example.image), (teacher, student))
            captions = "\n".join(example.captions)
            return example.image, *pair, example.question, captions, example.captions[0]

        def choose_models(image, teacher, student):
            return models.pair_for(images.kind(images.read(image)), (teacher, student))

        def update(image, teacher, student):
            hint = compare.out_of_domain_hint(images.read(image), (teacher, student)) if image else ""
            return hint, _student_color(student)

        at_once = dict(queue=False, show_progress="hidden", **PAGE)
        asked = [image, *names]
        gr.on([page.load, image.change, *(name.change for name in names)], None, asked, subject, js=SUBJECT)
        subject.change(answered(update, lambda _: ("", gr.skip())), asked, [hint, student_color], **QUICK, **PAGE)
        clicked = choices.click(None, None, place, js=parts.picked("examples"))
        filled = [*asked, *returned["compare"], sentence]
        clicked.then(choose_example, [place, *names], filled, **at_once)
        image.input(answered(choose_models, lambda _: (gr.skip(),) * 2), asked, [*names], **at_once)
        gr.on([image.input, image.clear], None, js=parts.RELEASE_EXAMPLES)
        clicked = hits.click(None, None, hit, js=parts.picked("found"))
        chosen = clicked.then(gallery.current().image, hit, image, **at_once)
        chosen.then(None, js=parts.RELEASE_EXAMPLES).then(None, js=parts.SHOW_IMAGE)
        page.unload(stop_job)
    return page


def _model_dropdowns() -> tuple[gr.Dropdown, gr.Dropdown]:
    fixed = models.are_fixed()
    options = dict(choices=models.choices(), allow_custom_value=not fixed, interactive=True, min_width=200)
    if not fixed:
        options["info"] = "or type a run folder or a hub id"
    teacher, student = models.defaults()
    return (
        gr.Dropdown(value=teacher, label="Teacher", elem_id="teacher", **options),
        gr.Dropdown(value=student, label="Student", elem_id="student", **options),
    )


def _student_color(student: str) -> str:
    """Style sheet with the color of the student's role."""
    return f"<style>:root {{ --student: var(--{models.role(student, 'student')}); }}</style>"


def serve(
    port: int | None = None,
    share: bool = False,
    names: list[str] | None = None,
    searched: str | None = None,
    optimize: bool = False,
) -> None:
    """Serve the page until interrupted.

    names: the only models that can be chosen, the first two at the start; on a public address the built-in ones by
    default. searched: data set for the Search tab. optimize: each model for this machine. Raises UserError if a model
    cannot be loaded, the data set cannot be opened or the port is taken.
    """
    public = share or os.environ.get("GRADIO_SERVER_NAME", LOCAL_HOSTS[0]) not in LOCAL_HOSTS
    models.fix(names or ([*dict.fromkeys((*models.defaults(), *models.choices()))] if public else None))
    gallery.use(searched)
    models.optimize(optimize)
    shown = (*models.defaults(), models.undistilled(models.defaults()[1]), *(names or ()))
    for name in reversed(dict.fromkeys(filter(None, shown))):  # the first ones stay in memory
        fastest = models.fastest(models.load(name))
        if optimize:
            print(fastest.name, flush=True)
    # a page elsewhere could otherwise reach the app through its visitor's browser (DNS rebinding)
    local_only = [] if models.are_fixed() else [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)]
    with _exit_on_signals(), tempfile.TemporaryDirectory(prefix="dlip-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build().queue(max_size=MAX_QUEUE, api_open=False)
        try:
            page.launch(
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                run_history=False,
                theme=theme.theme(),
                css=theme.css(),
                head=theme.HEAD,
                favicon_path=theme.ICON,
                footer_links=["api"],
                max_file_size=MAX_FILE,
                state_session_capacity=MAX_SESSIONS,
                app_kwargs={"middleware": local_only},
            )
        except (OSError, OverflowError):
            raise UserError(
                f"the app cannot listen on port {port or '7860 to 7959'}: it is taken or not allowed; choose another"
            ) from None
        print(f"The app is at {page.share_url or page.local_url}; Ctrl-C stops it.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            page.close(verbose=False)
            models.turn.acquire(timeout=20)  # torch aborts the process if it still runs while the interpreter ends


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit on SIGTERM, and on SIGHUP if it is not ignored, with codes 143 and 129, so that uploads are deleted."""

    def exit_with_code(number: int, _) -> None:
        raise SystemExit(128 + number)

    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, exit_with_code) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
