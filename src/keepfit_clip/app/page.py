"""The Gradio page (extra `app`): how it is made and served."""

import inspect
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from keepfit_clip.app.guard import Guard, check_guarded
from keepfit_clip.app.handlers import EXAMPLES, GUESS, Handlers, example_picture
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
_MAX_UPLOAD = MAX_IMAGES * _MAX_FILE + 1_000_000
_SESSIONS = 4  # that hold pictures at a time; the one not used for longest goes
_WAITING = 64  # requests to the model
_NOTE = (
    "Research use, not a diagnosis. Images stay in this machine's memory until the tab is closed or idle for half an "
    "hour; none is stored."
)


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
        uploads, examples = Path(folder) / "uploads", Path(folder) / "examples"
        uploads.mkdir()
        with _environment(uploads):
            page = _build(service, title, _draw_examples(examples), uploads)
            try:
                address = _launch(page, host, port, names, examples)
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


def _launch(page, host: str, port: int | None, names: Sequence[str], examples: Path) -> str:
    import gradio as gr
    from starlette.middleware import Middleware

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none of the network's
    options = {"run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False, "pwa": False}
    known = inspect.signature(page.launch).parameters  # some came with later releases of Gradio
    guard = Middleware(Guard, host=host, names=names, examples=examples, types=_TYPES, most=_MAX_UPLOAD)
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


def _build(service: Service, title: str, examples: list[tuple[str, str]], uploads: Path):
    """The page as `gradio.Blocks`, with a row of example files and what they are, and where uploads arrive."""
    import gradio as gr

    handlers = Handlers(service, uploads)
    alone = {"concurrency_limit": 1, "concurrency_id": "model"}

    gr.set_static_paths([str(Path(path).parent) for path, _ in examples])

    def example_chosen(modality, categories, kind, event: gr.SelectData):
        return handlers.example(event.index, modality, categories, kind)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 300)) as page:
        images = gr.State([], time_to_live=SESSION_KEPT)
        gr.Markdown(f"# {title}\n{_NOTE}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                label = f"Images (up to {MAX_IMAGES})"
                files = gr.File(label=label, file_count="multiple", file_types=_TYPES, height=140)
                gallery = gr.Gallery(
                    examples,
                    label="Drawn examples",
                    columns=len(EXAMPLES),
                    height=130,
                    allow_preview=False,
                    object_fit="contain",
                    elem_id="kf-examples",
                )
                modality = gr.Radio([GUESS, *MODALITIES], value=GUESS, label="Modality")
                categories = gr.Dropdown(
                    sorted(service.knowledge.conditions, key=str.casefold),
                    value=list(CATEGORIES),
                    multiselect=True,
                    allow_custom_value=True,
                    label="Categories (choose or write)",
                    elem_id="kf-categories",
                )
                gr.Markdown("### Where does it look?")
                kinds = list(MAPS) if service.has_captions else list(MAPS[:2])
                kind = gr.Radio(kinds, value=MAPS[0], label="Map", info="attention is of words of the caption")
                # Any value comes through: of a session that is gone Gradio knows no choices, and we say so ourselves.
                number = gr.Dropdown([], label="Image", elem_id="kf-number", allow_custom_value=True)
                target = gr.Dropdown([], label="Category or word", elem_id="kf-target", allow_custom_value=True)
                heat = gr.HTML(elem_classes="kf-heat", elem_id="kf-heat")
            with gr.Column(scale=3, min_width=300):
                results = gr.HTML("<p class='kf-soft'>Drop an image, or click an example.</p>", elem_id="kf-results")
        shown = [images, files, results, number, target, heat]
        words = [modality, categories, kind, number, target]
        files.upload(handlers.uploaded, [files, modality, categories, kind], shown, **alone)
        gallery.select(example_chosen, [modality, categories, kind], shown, **alone)
        for control in (modality, categories):
            control.change(handlers.asked_anew, [images, *words], [results, target, heat], **alone)
        for control in (kind, number):
            control.input(handlers.map_chosen, [images, *words], [target, heat], **alone)
        target.input(handlers.heat, [images, *words], heat, **alone)
    return page


def _draw_examples(folder: Path) -> list[tuple[str, str]]:
    folder.mkdir()
    files = [(folder / f"{number}.png", " ".join(kind)) for number, kind in enumerate(EXAMPLES)]
    for number, (file, _) in enumerate(files):
        example_picture(number).save(file)
    return [(str(file), what) for file, what in files]
