"""The Gradio page (extra `app`): how it is made and served."""

import inspect
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from keepfit_clip.app.guard import Guard, check_guarded
from keepfit_clip.app.handlers import GUESS, MAX_FOLDER, Asked, Handlers, example_buttons
from keepfit_clip.app.service import MAPS, MAX_IMAGES, Service
from keepfit_clip.app.uploads import SESSION_KEPT, forgetting
from keepfit_clip.errors import ConfigError
from keepfit_clip.extras import require_extra
from keepfit_clip.images.volumes import VOLUME_SUFFIXES
from keepfit_clip.knowledge.conditions import MODALITIES

__all__ = ["running_page"]

CATEGORIES = ("normal", "diabetic retinopathy", "glaucoma", "age-related macular degeneration", "cataract")
_TYPES = [".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", *VOLUME_SUFFIXES]
_MAX_FILE = 25_000_000  # bytes
_MAX_UPLOAD = 2_000_000_000  # bytes of all files that are sent together: a folder's
_SESSIONS = 4  # that hold pictures at a time; the one not used for longest goes
_WAITING = 64  # requests to the model
_NOTE = (
    "Research use, not a diagnosis. Images and the names of their files stay in this machine's memory until the tab is "
    "closed or idle for half an hour, and are shown to nobody else; none is stored."
)
# A button in the results says which image it corrects; what replaces it when it is answered gets the focus back.
_CORRECT = """
const place = (button) => `button[data-image="${button.dataset.image}"][data-modality="${button.dataset.modality}"]`;
let pressed = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-modality]');
  if (!button) return;
  pressed = place(button);
  trigger('click', {image: button.dataset.image, modality: button.dataset.modality});
});
watch('value', () => { if (pressed) element.querySelector(pressed)?.focus({preventScroll: true}); pressed = null; });
"""
_EXAMPLE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('click', {example: button.dataset.example});
});
"""
_FADE = "(percent) => { document.documentElement.style.setProperty('--kf-opacity', percent / 100); }"
_OPACITY = 55  # percent


@contextmanager
def running_page(
    service: Service,
    title: str = "KeepFIT",
    host: str = "127.0.0.1",
    port: int | None = None,
    names: Sequence[str] = (),
) -> Iterator[str]:
    """Serves the page while the block runs; Gradio's own files are in a folder that goes with it.

    Args:
        service: answers.
        title: of the page.
        host: address to bind to; beyond this machine only if told so.
        port: a free one by default.
        names: by which the page may be asked for beside its address, as NAME or NAME:PORT.

    Yields:
        The address of the page.

    Raises:
        MissingExtraError: Gradio is not installed.
        ConfigError: the address or the port cannot be had, or this Gradio keeps more than it should.
    """
    require_extra("app")
    _check_address(host)
    with tempfile.TemporaryDirectory(prefix="keepfit-app-") as folder:
        uploads = Path(folder) / "uploads"
        uploads.mkdir()
        with _environment(uploads):
            page = _build(service, title, uploads)
            try:
                address = _launch(page, host, port, names)
                with forgetting(page, uploads):
                    yield address
            finally:  # before the folder goes, or an upload would make it anew
                page.close(verbose=False)


@contextmanager
def _environment(uploads: Path) -> Iterator[None]:
    """Gradio's switches and the place of temporary files, also of uploads that break off, while the block runs."""
    values = {
        "GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"
    }  # fmt: skip
    before, temporary = {name: os.environ.get(name) for name in values}, tempfile.tempdir
    os.environ.update(values)
    tempfile.tempdir = str(uploads)
    try:
        yield
    finally:
        tempfile.tempdir = temporary
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_address(host: str) -> None:
    """Gradio itself would try a hundred ports at an address that is none of this machine's, and fail over IPv6."""
    if ":" in host:
        raise ConfigError(f"--host {host}: an IPv6 address, which Gradio cannot serve; give an IPv4 address or a name")
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ConfigError(f"--host {host}: no address of this machine ({error})") from error


def _launch(page, host: str, port: int | None, names: Sequence[str]) -> str:
    import gradio as gr
    from starlette.middleware import Middleware

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none of the network's
    options = {"run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False, "pwa": False}
    known = inspect.signature(page.launch).parameters  # some came with later releases of Gradio
    guard = Middleware(Guard, host=host, names=names, types=_TYPES, most=_MAX_UPLOAD)
    try:
        _, address, _ = page.queue(max_size=_WAITING, api_open=False).launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            max_file_size=_MAX_FILE,
            state_session_capacity=_SESSIONS,
            app_kwargs={"middleware": [guard]},
            footer_links=[],
            theme=gr.themes.Default(primary_hue="teal", **fonts),
            css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
            prevent_thread_lock=True,
            **{name: value for name, value in options.items() if name in known},
        )
    except OSError as error:
        raise ConfigError(f"{host}, port {port or 'any free one'}: cannot be had ({error})") from error
    check_guarded(address)
    return address


def _build(service: Service, title: str, uploads: Path):
    """The page as `gradio.Blocks`."""
    import gradio as gr

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 300)) as page:
        gr.Markdown(f"# {title}\n{_NOTE}")
        with gr.Row(elem_id="kf-layout"):
            with gr.Column(elem_id="kf-controls"):
                controls = _controls(service)
            with gr.Column(elem_id="kf-answers"):
                hint = "<p class='kf-soft'>Drop an image, or click an example.</p>"
                controls["results"] = gr.HTML(hint, elem_id="kf-results", js_on_load=_CORRECT)
            with gr.Column(elem_id="kf-maps"):
                controls |= _maps(service)
        controls |= _pair()
        controls |= _folder()
        _connect(Handlers(service, uploads), controls)
    return page


def _controls(service: Service) -> dict:
    """What is looked at, and what is asked."""
    import gradio as gr

    label = f"Images (up to {MAX_IMAGES})"
    return {
        "files": gr.File(label=label, file_count="multiple", file_types=_TYPES, height=140, elem_id="kf-files"),
        "examples": gr.HTML(example_buttons(), elem_id="kf-examples", js_on_load=_EXAMPLE),
        "modality": gr.Radio([GUESS, *MODALITIES], value=GUESS, label="Modality of all images", elem_id="kf-modality"),
        "categories": gr.Dropdown(
            sorted(service.knowledge.conditions, key=str.casefold),
            value=list(CATEGORIES),
            multiselect=True,
            allow_custom_value=True,
            label="Categories (choose or write)",
            elem_id="kf-categories",
        ),
        "heads": gr.CheckboxGroup(
            list(service.heads),
            value=list(service.heads),
            label="Learnt from data sets",
            visible=bool(service.heads),
            elem_id="kf-heads",
        ),
    }


def _maps(service: Service) -> dict:
    """Where the model looks."""
    import gradio as gr

    gr.Markdown("## Where does it look?")
    kinds = list(MAPS) if service.has_captions else list(MAPS[:2])
    # Any value comes through: of a session that is gone Gradio knows no choices, and we say so ourselves.
    found = {
        "kind": gr.Radio(kinds, value=MAPS[0], label="Map (attention: of words of the caption)"),
        "number": gr.Dropdown([], label="Image", elem_id="kf-number", allow_custom_value=True),
        "target": gr.Dropdown([], label="Category or word", elem_id="kf-target", allow_custom_value=True),
        "every_word": gr.Checkbox(False, label="function words too", visible=False, elem_id="kf-every-word"),
    }
    opacity = gr.Slider(0, 100, value=_OPACITY, step=5, label="Opacity of the colours (%)", elem_id="kf-opacity")
    opacity.input(None, opacity, None, js=_FADE)
    return found | {"heat": gr.HTML(elem_classes="kf-heat", elem_id="kf-heat")}


def _pair() -> dict:
    """Two of the images side by side."""
    import gradio as gr

    with gr.Accordion("Two images side by side: two visits, or both eyes", open=False, elem_id="kf-compare"):
        with gr.Row():
            one = gr.Dropdown([], label="One", elem_id="kf-one", allow_custom_value=True)
            two = gr.Dropdown([], label="The other", elem_id="kf-two", allow_custom_value=True)
        return {"one": one, "two": two, "compared": gr.HTML(elem_id="kf-compared")}


def _folder() -> dict:
    """A folder as a table."""
    import gradio as gr

    with gr.Accordion("A folder as a table", open=False, elem_id="kf-folder"):
        label = f"A folder (up to {MAX_FOLDER} images), asked as above"
        return {
            "folder": gr.File(
                label=label, file_count="directory", file_types=_TYPES, height=120, elem_id="kf-folder-files"
            ),
            "stop": gr.Button("Stop", elem_id="kf-stop"),
            "progress": gr.HTML(elem_id="kf-folder-progress"),
            "table": gr.HTML(elem_id="kf-folder-table"),
        }


def _connect(handlers: Handlers, parts: dict) -> None:
    """What follows from what on the page; `parts` are its components by name."""
    import gradio as gr

    images = gr.State([], time_to_live=SESSION_KEPT)
    words = [parts[field.name] for field in fields(Asked)]
    alone = {"concurrency_limit": 1, "concurrency_id": "model"}

    def asking(handler):
        """A handler whose last argument is all that is asked."""
        return lambda *values: handler(*values[: -len(words)], Asked(*values[-len(words) :]))

    def example_chosen(event: gr.EventData, *values):
        return handlers.example(_said(event, "example"), Asked(*values))

    def corrected(event: gr.EventData, *values):
        number, modality = _said(event, "image"), _said(event, "modality")
        return handlers.corrected(values[0], number, modality, Asked(*values[1:]))

    def words_folded(kind):
        return gr.update(visible=kind == "attention")

    named = parts.__getitem__
    whole = [images, *map(named, ("files", "results", "number", "target", "heat", "one", "two", "compared"))]
    anew = [*map(named, ("results", "target", "heat", "compared"))]
    shown_map = [*map(named, ("target", "heat"))]
    parts["files"].upload(asking(handlers.uploaded), [parts["files"], *words], whole, **alone)
    parts["examples"].click(example_chosen, words, whole, **alone)
    for name in ("categories", "heads"):
        parts[name].change(asking(handlers.asked_anew), [images, *words], anew, **alone)
    parts["modality"].input(asking(handlers.of_all), [images, *words], [images, *anew], **alone)
    parts["results"].click(corrected, [images, *words], [images, *anew], **alone)
    parts["kind"].change(words_folded, parts["kind"], parts["every_word"], show_progress="hidden")
    for name in ("kind", "number", "every_word"):
        parts[name].input(asking(handlers.map_chosen), [images, *words], shown_map, **alone)
    parts["target"].input(asking(handlers.heat), [images, *words], parts["heat"], **alone)
    for name in ("one", "two"):
        parts[name].input(asking(handlers.compared), [images, *words], parts["compared"], **alone)
    _connect_folder(handlers, parts, words)


def _connect_folder(handlers: Handlers, parts: dict, words: list) -> None:
    """What follows from a folder, which has a thread of its own: others are answered meanwhile."""
    import gradio as gr

    batch = gr.State(None, time_to_live=SESSION_KEPT)

    def folder_given(files, *values):  # Gradio takes a function for a generator by its own yield
        yield from handlers.folder(files, Asked(*values))

    table = [batch, parts["folder"], parts["progress"], parts["table"]]
    alone = {"concurrency_limit": 1, "concurrency_id": "folder", "show_progress": "hidden"}
    parts["folder"].upload(folder_given, [parts["folder"], *words], table, **alone)
    parts["stop"].click(handlers.stopped, batch, None, show_progress="hidden")


def _said(event, name: str) -> str:
    """What a button on the page says of itself; "" of one that is none of the page's."""
    return str(event._data.get(name, "")) if isinstance(event._data, dict) else ""
