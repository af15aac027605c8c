"""The Gradio page (extra `app`). Uploads are read into memory and removed from the disk at once."""

import base64
import ctypes
import http.client
import inspect
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from keepfit_clip.app.guard import Guard
from keepfit_clip.app.service import MAPS, MAX_IMAGES, MAX_PIXELS, ImageAnswer, Service
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ConfigError, KeepFITError
from keepfit_clip.extras import require_extra
from keepfit_clip.images.reading import open_image
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.page.report import picture_uri

__all__ = ["running_page"]

CATEGORIES = ("normal", "diabetic retinopathy", "glaucoma", "age-related macular degeneration", "cataract")
EXAMPLES = (
    ("CFP", "normal"), ("CFP", "branch retinal vein occlusion"), ("CFP", "glaucoma"),
    ("FFA", "macular edema"), ("OCT", "macular hole"),
)  # fmt: skip
_GUESS = "guess"
_SHOWN = 512  # longest side of a picture on the page
_TYPES = [".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"]
_MAX_FILE = 25_000_000  # bytes
_MAX_UPLOAD = MAX_IMAGES * _MAX_FILE + 1_000_000
_SESSIONS = 4  # that hold pictures at a time; the one not used for longest goes
_WAITING = 64  # requests to the model
_KEPT = 1800  # seconds that an idle session stays in memory
_UPLOAD_KEPT = 600  # seconds that a file stays which nobody comes for: its upload broke off, or others are before it
_WATCH = 15  # seconds between two looks for them
_GONE = "The images are no longer in memory: upload them again."
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
                with _forgetting(page, uploads):
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


@contextmanager
def _forgetting(page, uploads: Path) -> Iterator[None]:
    """Removes, while the block runs, what Gradio would keep: sessions that are over, and uploads nobody came for.

    A session holds the images and what was shown of them; it is over once its tab is closed or idle for `_KEPT`.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH):
            _forget(page.state_holder, uploads)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _forget(sessions, uploads: Path) -> None:
    """One look at the sessions (Gradio's state holder) and at the folder of uploads."""
    idle = datetime.now() - timedelta(seconds=_KEPT)
    for key, last_used in list(sessions.time_last_used.items()):
        session = sessions.session_data.get(key)
        if session is None or session.is_closed or last_used < idle:
            sessions.session_data.pop(key, None)
            sessions.time_last_used.pop(key, None)
    for path in uploads.rglob("*"):
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > _UPLOAD_KEPT:
                path.unlink()
    _give_memory_back()


def _give_memory_back() -> None:
    """Asks the C library to return what is free, where it has a call for that (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
    _check_guarded(address)
    return address


def _check_guarded(address: str) -> None:
    """Asks the running page for what must not be had: whether Gradio has let the guard in.

    Raises:
        ConfigError: it has not.
    """
    parts = urlsplit(address)
    asked = (("/gradio_api/runs", parts.netloc, 404), ("/", "evil.example", 403), ("/", parts.netloc, 200))
    for path, name, expected in asked:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        forgets = path != "/" or expected != 200 or b"<head><script>(() => {\n  const memory" in answer.read()
        connection.close()
        if answer.status != expected or not forgets:
            raise ConfigError(
                "this release of Gradio would keep images in the browser or answer to any name: "
                "pip install 'gradio>=6.20,<=6.31'"
            )


def _build(service: Service, title: str, examples: list[tuple[str, str]], uploads: Path):
    """The page as `gradio.Blocks`, with a row of example files and what they are, and where uploads arrive."""
    import gradio as gr

    handlers = _Handlers(service, uploads)
    alone = {"concurrency_limit": 1, "concurrency_id": "model"}

    gr.set_static_paths([str(Path(path).parent) for path, _ in examples])

    def example_chosen(modality, categories, kind, event: gr.SelectData):
        return handlers.example(event.index, modality, categories, kind)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 300)) as page:
        images = gr.State([], time_to_live=_KEPT)
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
                modality = gr.Radio([_GUESS, *MODALITIES], value=_GUESS, label="Modality")
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


class _Handlers:
    """What happens on the page; every handler answers bad input with a sentence on it."""

    def __init__(self, service: Service, uploads: Path):
        self.service, self.uploads = service, uploads.resolve()

    def uploaded(self, files: Sequence[str] | None, modality: str, categories: list[str], kind: str):
        """Reads the files into memory, one after the other, and removes them."""
        paths, images, problems = [Path(file) for file in files or ()], [], []
        try:
            for number, path in enumerate(paths[:MAX_IMAGES], start=1):
                self._keep(paths[number - 1 :])
                try:
                    images.append(self.service.look(open_image(path.read_bytes(), max_pixels=MAX_PIXELS, blank=False)))
                except OSError:
                    problems.append(f"File {number}: it did not arrive; upload it again.")
                except KeepFITError as error:
                    problems.append(f"File {number}: {getattr(error, 'reason', error)}.")
            if len(paths) > MAX_IMAGES:
                problems.append(f"{len(paths)} files: only the first {MAX_IMAGES} were looked at.")
        finally:
            self._remove(paths)
            _give_memory_back()
        return self._shown(images, problems, modality, categories, kind)

    def _keep(self, paths: Sequence[Path]) -> None:
        """Says that files are waited for, so that they are not taken for left behind while others are looked at."""
        for path in paths:
            with suppress(OSError):
                if path.resolve().is_relative_to(self.uploads):
                    os.utime(path)

    def _remove(self, paths: Sequence[Path]) -> None:
        """Removes uploads; a file of the page's own, which anybody can name as an upload, stays."""
        for path in paths:
            if path.resolve().is_relative_to(self.uploads):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # Gradio's folder of the same content, maybe in use
                    path.parent.rmdir()

    def example(self, number: int, modality: str, categories: list[str], kind: str):
        """Looks at a drawn example."""
        return self._shown([self.service.look(_example(number))], [], modality, categories, kind)

    def asked_anew(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target):
        """Other categories or another modality for the same images."""
        problems = [_GONE] if number and not images else []
        results = self._results(images, problems, modality, categories)
        return results, *self.map_chosen(images, modality, categories, kind, number, target)

    def map_chosen(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target):
        """Another kind of map or another image: other targets to choose from."""
        import gradio as gr

        choices = _named(categories)
        if kind == "attention":
            image = _numbered(images, number)
            choices = self.service.words(image) if image else []
        chosen = target if target in choices else choices[0] if choices else None
        heat = self.heat(images, modality, categories, kind, number, chosen)
        return gr.update(choices=choices, value=chosen), heat

    def heat(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target) -> str:
        """The heat map of a category or a word."""
        if number and not images:
            return _render([], [_GONE], "")
        image = _numbered(images, number)
        if image is None or not target:
            return ""
        try:
            overlay = self.service.heat(image, kind, target, _named(categories), _given(modality))
        except KeepFITError as error:
            return _render([], [str(error)], "")
        return f'<img src="{picture_uri(overlay, longest=_SHOWN)}" alt="heat map">'

    def _shown(self, images: list[ImageAnswer], problems: list[str], modality: str, categories: list[str], kind: str):
        import gradio as gr

        numbers = [str(n) for n in range(1, len(images) + 1)]
        first = numbers[0] if numbers else None
        target, heat = self.map_chosen(images, modality, categories, kind, first, None)
        results = self._results(images, problems, modality, categories)
        return images, None, results, gr.update(choices=numbers, value=first), target, heat

    def _results(self, images: list[ImageAnswer], problems: list[str], modality: str, categories: list[str]) -> str:
        cards, given = [], _given(modality)
        try:
            answers = [self.service.answer(image, _named(categories), given) for image in images]
            table = self.service.table(images, _named(categories), given) if images else ""
        except KeepFITError as error:
            return _render([], [*problems, str(error)], "")
        for image, answer in zip(images, answers, strict=True):
            cards.append(
                {
                    "picture": picture_uri(image.image, longest=_SHOWN),
                    "modality": answer.modality,
                    "guessed": given is None,
                    "sureness": image.sureness,
                    "probabilities": list(answer.probabilities.items()),
                    "caption": image.explanation.caption if image.explanation else None,
                    "nearest": image.nearest,
                }
            )
        return _render(cards, problems, table)


def _numbered(images: list[ImageAnswer], number: str | None) -> ImageAnswer | None:
    """The image that a number on the page stands for, if it is one."""
    return dict(zip(map(str, range(1, len(images) + 1)), images, strict=True)).get(number)


def _named(categories: Sequence[str]) -> tuple[str, ...]:
    """The categories without empty ones that somebody wrote."""
    return tuple(name for name in (category.strip() for category in categories) if name)


def _given(modality: str) -> str | None:
    return None if modality == _GUESS else modality


def _render(cards: list[dict], problems: list[str], table: str) -> str:
    uri = f"data:text/csv;base64,{base64.b64encode(table.encode()).decode()}" if table else ""
    return _template().render(cards=cards, problems=problems, csv=uri)


@lru_cache(maxsize=1)
def _template():
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("results.html.j2")


def _example(number: int) -> Image.Image:
    modality, condition = EXAMPLES[number]
    return draw_retina(modality, condition, [2026, number], 256).image


def _draw_examples(folder: Path) -> list[tuple[str, str]]:
    folder.mkdir()
    files = [(folder / f"{number}.png", " ".join(kind)) for number, kind in enumerate(EXAMPLES)]
    for number, (file, _) in enumerate(files):
        _example(number).save(file)
    return [(str(file), what) for file, what in files]
