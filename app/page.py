"""The page: two models at the top, one image, and a tab for each way to compare them on it.

A tab is a module of `app.tabs` with a function

    def tab(page, names, image)

that is called inside its own gr.Tab. It returns the inputs, if any, that an example fills in.

- `names` = (teacher, student) are two gr.Dropdown of model names; `image` is a gr.Image whose value is a file's path or
  None. They come first among an event's inputs: `[image, *names, ...]`. The server keeps no state of a visitor: every
  event carries names and image. Which tabs show the image panel is decided in style.css by the tab's elem_id.
- Pure functions above `tab` do the work without gradio. They take names and a path, read it with `images.read`, load
  models with `models.pair`, return plain JSON as a TypedDict, and raise UserError.
- `events.endpoint(function, [image, *names, ...])` makes such a function an API endpoint, documented by its docstring
  and return type. The page shows the same result as HTML, made by a pure function `show` from a template in `view`. The
  page's own events have a queue of `events`: `**events.QUICK`, or `**events.LONG` if they take more than a second.
- Every handler that can fail is wrapped by `events.guarded` or `events.handled`, which show exceptions as a
  sentence and hold `models.turn`. Long jobs take the turn themselves, see `jobs.turns`.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from dlip.common.errors import UserError

from . import events, gallery, gradio_workarounds, images, inputs, models, security
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
TITLE = "<h1>DLIP Workbench</h1><p>What a student keeps of its teacher, and saves</p>"


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
        with gr.Row(elem_id="body"):
            with gr.Column(scale=3, min_width=280, elem_id="image-panel"):
                image = gr.Image(
                    examples[0].image, type="filepath", image_mode=None, format="png", label="Image", show_label=False,
                    sources=["upload", "clipboard", "webcam"], alt_text="the image that the models are shown",
                    elem_id="image",
                )  # fmt: skip
                gradio_workarounds.take_raw_value(image, security.uploaded_path)
                file = {"path": "image.png", "url": "image.png", "meta": {"_type": "gradio.FileData"}}
                image.example_payload = lambda: file
                thumbnails = [(parts.thumbnail(example.image, ""), example.name) for example in examples]
                buttons = gr.HTML(parts.image_buttons(thumbnails, "Examples"), js_on_load=parts.ON_PICK,
                                  elem_id="examples")  # fmt: skip
                place = gr.JSON(visible=False)
                gr.HTML(parts.hint("Drop, paste or photograph an image, or choose one of these."))
                first_hint = compare.out_of_domain_hint(examples[0].image, models.defaults())
                hint, unreadable = gr.HTML(first_hint, elem_id="domain-hint"), gr.Textbox(visible=False)
            with gr.Column(scale=8, min_width=320), gr.Tabs():
                returned = {}
                for name, (label, module) in TABS.items():
                    with gr.Tab(label, id=name, elem_id=name) as tab:
                        returned[name] = module.tab(page, names, image)
                    tab.select(None, js=parts.RESIZE_CHARTS)

        def choose_example(place, teacher, student):
            example = examples[place]
            pair = models.pair_for(images.kind(example.image), (teacher, student))
            sentence = gr.skip() if pair == (teacher, student) else example.captions[0]
            return example.image, *pair, example.question, "\n".join(example.captions), sentence

        def fit_to_own_image(image, teacher, student, *texts):
            """Models that know an image of the visitor's own, and texts about it in place of those of an example."""
            try:
                kind = images.kind(images.read(image))
            except UserError:  # none, or one of which `unreadable_upload` warns
                return (gr.skip(),) * 4
            of_examples = {text for one in images.examples() for text in (one.question, "\n".join(one.captions))}
            question, captions = images.OWN_IMAGE[kind]
            own = (question, "\n".join(captions))
            return *models.pair_for(kind, (teacher, student)), *(
                new if text in of_examples else text for text, new in zip(texts, own, strict=True)
            )

        def update_hint(image, teacher, student):
            return compare.out_of_domain_hint(images.read(image), (teacher, student)) if image else ""

        def unreadable_upload(image):
            """The path of an image that cannot be read, after a warning."""
            try:
                if image:
                    images.read(image)
            except UserError as error:
                events.warn(events.message(error))
                return image

        quick = dict(**events.QUICK, show_progress="hidden")
        at_once = dict(**events.PRIVATE, queue=False, show_progress="hidden")
        events.chain([image.change, *(name.change for name in names)])(
            events.handled(update_hint, events.ignore), [image, *names], hint, **quick
        )
        events.chain([names[1].change])(_student_color, names[1], student_color, **at_once, **events.LATEST)
        # the image itself is no output here, not even as gr.skip(): gradio would make it anew, without its preprocess
        checked = events.chain([image.input])(
            events.handled(unreadable_upload, events.warn), image, unreadable, **quick
        )
        checked.then(None, [unreadable, image], js=parts.REMOVE_IMAGE_IF)
        sentence, hit_chosen = returned["search"]
        compared = [*names, *returned["compare"]]
        for own_image in (events.chain([image.input]), hit_chosen.then):
            own_image(events.guarded(fit_to_own_image, long=True), [image, *compared], compared, **at_once)
        gr.on([image.input, image.clear], None, js=parts.RELEASE_EXAMPLES)
        clicked = buttons.click(None, None, place, js=parts.picked("examples"))
        filled = [image, *compared, sentence]
        chosen = events.guarded(choose_example, long=True)
        clicked.then(chosen, [place, *names], filled, **events.CHOICE)
    return page


def _model_dropdowns() -> tuple[gr.Dropdown, gr.Dropdown]:
    teacher, student = models.defaults()
    fixed = models.are_fixed()
    options = dict(choices=models.choices(), allow_custom_value=not fixed, interactive=True, min_width=200,
                   info=None if fixed else "or type a run folder or a hub id")  # fmt: skip
    return (
        gr.Dropdown(value=teacher, label="Teacher", elem_id="teacher", **options),
        gr.Dropdown(value=student, label="Student", elem_id="student", **options),
    )


def _student_color(student: str) -> str:
    """Style sheet with the color of the student's role."""
    student = student if isinstance(student, str) and len(student) <= inputs.MAX_CHARACTERS else ""
    return f"<style>:root {{ --student: var(--{models.role(student, 'student')}); }}</style>"


def serve(
    port: int | None = None, share: bool = False, names: list[str] | None = None, searched: str | None = None,
    optimize: bool = False,
) -> None:  # fmt: skip
    """Serve the page until interrupted.

    names: the only models that can be chosen, the first two at the start; on a public address the built-in ones by
    default. searched: data set for the Search tab. optimize: each model for this machine. Raises UserError if a model
    cannot be loaded, the data set cannot be opened or the port is taken.
    """
    built_in = dict.fromkeys((*models.defaults(), *models.choices()))
    models.fix(names or (list(built_in) if share or security.is_public() else None))
    gallery.use(searched)
    models.optimize(optimize)
    shown = (*models.defaults(), models.undistilled(models.defaults()[1]), *(names or ()))
    for name in reversed(dict.fromkeys(filter(None, shown))):  # the first ones stay in memory
        fastest = models.fastest(models.load(name))
        if optimize:
            print(fastest.name, flush=True)
    with _exit_on_signals(), tempfile.TemporaryDirectory(prefix="dlip-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build().queue(max_size=MAX_QUEUE, api_open=False)
        gradio_workarounds.friendly_input_errors(page, events.error)
        no_proxy = [os.getenv("NO_PROXY"), os.getenv("no_proxy"), *security.LOCAL_HOSTS[:2]]
        os.environ["NO_PROXY"] = ",".join(filter(None, no_proxy))
        try:
            page.launch(
                server_port=port, share=share, quiet=True, prevent_thread_lock=True, ssr_mode=False, run_history=False,
                theme=theme.theme(), css=theme.css(), head=theme.HEAD + gradio_workarounds.EVENT_STREAM,
                favicon_path=theme.ICON, footer_links=["api"], max_file_size=security.MAX_FILE,
                state_session_capacity=MAX_SESSIONS,
                app_kwargs={"middleware": security.middleware(local_only=not models.are_fixed())},
            )  # fmt: skip
        except (OSError, OverflowError):
            raise UserError(
                f"the app cannot listen on port {port or '7860 to 7959'}: it is taken or not allowed; choose another"
            ) from None
        except ValueError as error:  # gradio requests its own page once
            raise UserError(f"the app cannot reach its own page ({error}); check the proxy settings") from None
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
