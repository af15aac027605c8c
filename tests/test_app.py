"""The page: what it asks of a model, and the real page in a real browser."""

import asyncio
import base64
import csv
import http.client
import http.server
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.app.guard import Guard, check_guarded
from keepfit_clip.app.handlers import Handlers
from keepfit_clip.app.service import Gallery, Service
from keepfit_clip.app.uploads import forget
from keepfit_clip.cli import app
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import CategoryError, CheckpointError, ConfigError, ImageError, KeepFITWarning
from keepfit_clip.evaluate.pairs import read_pairs
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images.reading import open_image
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.model.zero_shot import ZeroShotClassifier

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CATEGORIES = ("normal", "glaucoma", "cataract")


@pytest.fixture(scope="module")
def service(exported, shards):
    loaded = load_model(exported)
    return Service(loaded, Knowledge.load(), Gallery(loaded, read_pairs(shards / "elite", None), None))


@pytest.fixture(scope="module")
def seen(service):
    return service.look(draw_retina("CFP", "glaucoma", 3, 96).image)


def test_answers_are_the_classifiers(service, seen):
    assert seen.modality in MODALITIES
    for modality in ("CFP", "OCT"):
        answer = service.answer(seen, CATEGORIES, modality)
        loaded = service.loaded
        classifier = ZeroShotClassifier(loaded.model, loaded.tokenizer, CATEGORIES, modality)
        expected = classifier.predict_proba(loaded.preprocess(seen.image)[None])[0]
        assert answer.modality == modality
        for name, value in zip(CATEGORIES, expected.tolist(), strict=True):
            assert answer.probabilities[name] == pytest.approx(value, abs=1e-5)
        assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)
    assert service.answer(seen, ["glaucoma"]).probabilities == {}
    with pytest.raises(CategoryError, match="stand twice"):
        service.answer(seen, ["glaucoma", "glaucoma"])


def test_heat_maps_of_categories_and_words(service, seen):
    for kind in ("similarity", "Grad-CAM"):
        assert service.heat(seen, kind, "glaucoma", CATEGORIES, None).size == (64, 64)
    words = service.words(seen)
    assert words[0].startswith("1. ")
    assert service.heat(seen, "attention", words[0], CATEGORIES, None).size == (64, 64)
    with pytest.raises(ConfigError, match="no word of the caption"):
        service.heat(seen, "attention", "glaucoma", CATEGORIES, None)
    with pytest.raises(ConfigError, match="none of the categories"):
        service.heat(seen, "similarity", "drusen", CATEGORIES, None)


def test_the_gallery_gives_the_nearest_first_and_itself_before_all(service, exported, shards):
    record = service.gallery.records[3]
    found = service.look(open_image(record.image.read())).nearest
    assert found[0][2] == pytest.approx(1, abs=1e-3)
    assert found[0][1] == service.gallery.captions[3][0]
    assert [value for *_, value in found] == sorted((value for *_, value in found), reverse=True)
    assert found[0][0].startswith("data:image/jpeg;base64,")


def test_a_table_of_several_images(service, seen):
    rows = list(csv.DictReader(io.StringIO(service.table([seen, seen], CATEGORIES, "CFP"))))
    assert [row["image"] for row in rows] == ["1", "2"]
    assert sum(float(rows[0][name]) for name in CATEGORIES) == pytest.approx(1, abs=1e-4)
    assert rows[0]["caption"] == seen.explanation.caption


def test_a_category_in_the_table_is_no_formula(service, seen):
    with pytest.warns(KeepFITWarning, match="judged by the name alone"):
        rows = list(csv.reader(io.StringIO(service.table([seen], ["=1+1", "@SUM(A1)"], "CFP"))))
    assert rows[0][2:4] == ["'=1+1", "'@SUM(A1)"]


def test_too_many_pixels_are_refused_before_they_are_decoded():
    buffer = io.BytesIO()
    Image.new("L", (300, 200)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="more than 0 million pixels"):
        open_image(buffer.getvalue(), max_pixels=59_999)
    assert open_image(buffer.getvalue(), max_pixels=60_000).size == (300, 200)


def test_a_16_bit_tiff_does_not_pass_the_limit():
    import cv2

    deep = np.zeros((40, 50, 3), dtype=np.uint16)
    content = cv2.imencode(".tif", deep)[1].tobytes()
    assert open_image(content).size == (50, 40)
    with pytest.raises(ImageError, match="million pixels"):
        open_image(content, max_pixels=1999)


def test_what_is_over_is_forgotten(tmp_path):
    """Sessions whose tab is closed or that are idle, and uploads nobody came for."""
    now = datetime.now()
    sessions = SimpleNamespace(
        session_data={name: SimpleNamespace(is_closed=name == "closed") for name in ("open", "closed", "idle")},
        time_last_used={"open": now, "closed": now, "idle": now - timedelta(hours=1)},
    )
    for name in ("hash/left.png", "hash/fresh.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        if "fresh" not in name:
            os.utime(tmp_path / name, (time.time() - 700,) * 2)
    forget(sessions, tmp_path)
    assert list(sessions.session_data) == list(sessions.time_last_used) == ["open"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["fresh.png"]


def test_an_address_of_another_machine_is_refused_at_once(exported):
    result = CliRunner().invoke(app, ["app", "--model", str(exported), "--host", "192.0.2.1"])
    assert isinstance(result.exception, ConfigError)
    assert "no address of this machine" in str(result.exception)


def test_an_ipv6_address_is_refused_in_one_line(exported):
    result = CliRunner().invoke(app, ["app", "--model", str(exported), "--host", "::1"])
    assert isinstance(result.exception, ConfigError)
    assert "IPv4" in str(result.exception)


def test_no_model_and_no_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["app"])
    assert isinstance(result.exception, CheckpointError)
    assert "keepfit-clip demo" in str(result.exception)


async def _answered(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<html><head></head></html>"})


def status_of(host, bound, names=(), address="127.0.0.1", path="/", **headers):
    """What the guard answers to one request."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    told = [(name.lower().encode(), value.encode()) for name, value in {"Host": host, **headers}.items()]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": told,
        "server": (address, 80),
    }
    guard = Guard(_answered, bound, names, "/nowhere", [".png"], 1000)
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("host", "bound", "names", "address", "status"),
    [
        ("localhost", "127.0.0.1", [], "127.0.0.1", 200),
        ("localhost:9000", "127.0.0.1", [], "127.0.0.1", 403),
        ("localhost:9000", "127.0.0.1", ["localhost:9000"], "127.0.0.1", 200),
        ("eye.example.org", "0.0.0.0", [], "192.0.2.7", 403),
        ("eye.example.org", "0.0.0.0", ["eye.example.org"], "192.0.2.7", 200),
        ("Eye.Example.org.:8443", "0.0.0.0", ["eye.example.org"], "192.0.2.7", 200),
        ("192.0.2.7", "0.0.0.0", [], "192.0.2.7", 200),
        ("192.0.2.7", "::", [], "::ffff:192.0.2.7", 200),
        ("192.0.2.8", "0.0.0.0", [], "192.0.2.7", 403),
        ("localhost", "0.0.0.0", [], "192.0.2.7", 403),
        ("[2001:db8::1]", "2001:db8::1", [], "2001:db8::1", 200),
        ("192.0.2.7", "192.0.2.7", [], "192.0.2.7", 200),
        ("localhost", "192.0.2.7", [], "192.0.2.7", 403),
        ("", "127.0.0.1", [], "127.0.0.1", 403),
    ],
)
def test_names_of_other_bindings(host, bound, names, address, status):
    assert status_of(host, bound, names, address) == status


def test_a_place_that_a_later_gradio_may_add_is_not_to_be_had():
    assert status_of("localhost", "127.0.0.1", path="/gradio_api/something_new") == 404
    assert status_of("localhost", "127.0.0.1", path="/gradio_api/queue/../runs") == 404
    assert status_of("localhost", "127.0.0.1", Origin="http://evil.example") == 403


def test_a_gradio_that_does_not_let_the_guard_in_is_refused():
    class Anything(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html><head></head></html>")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Anything) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ConfigError, match="pip install 'gradio"):
                check_guarded(f"http://127.0.0.1:{server.server_port}/")
        finally:
            server.shutdown()
            thread.join()


# ---- in a real browser


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def address(exported, shards, tmp_path_factory):
    """A running page and the folder of its temporary files."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    (folder / "tmp").mkdir()
    log = open(folder / "log", "w")  # noqa: SIM115 - closed below
    program = [sys.executable, "-c", "from keepfit_clip.cli import main; main()", "app"]
    options = ["--model", exported, "--gallery", shards / "elite", "--port", port, "--cache", folder / "cache"]
    command = list(map(str, [*program, *options]))
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(240):
        assert process.poll() is None, (folder / "log").read_text()
        try:
            urllib.request.urlopen(url, timeout=1)
            break
        except OSError:
            time.sleep(0.25)
    yield url, folder / "tmp"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    log.close()
    assert not list((folder / "tmp").iterdir())  # nothing stays behind
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def browse(address):
    """Opens the page, as wide as asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)

        def open_page(width=1200, height=900):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(30_000)
            page.goto(address[0])
            page.wait_for_selector("#kf-results")
            return page

        yield open_page
        browser.close()


def drawn(folder, number=0):
    path = folder / f"Jane_Doe_{number}.png"
    draw_retina("CFP", ("glaucoma", "cataract")[number % 2], number, 96).image.save(path)
    return str(path)


def probabilities(page):
    """What the first card says."""
    names = page.locator(".kf-card").first.locator(".kf-bars > span:not(.kf-number)").all_inner_texts()
    values = page.locator(".kf-card").first.locator(".kf-number").all_inner_texts()
    return dict(zip(names, map(float, values), strict=True))


def files_below(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.stat().st_size
        and "examples" not in path.parts
        and path.name != "_remote_module_non_scriptable.py"  # torch's own, before 2.9
    ]


def test_upload_read_change_and_look(browse, address, tmp_path):
    page = browse()
    page.set_input_files("input[type=file]", [drawn(tmp_path), drawn(tmp_path, 1)])
    page.wait_for_selector(".kf-card >> nth=1")
    first = probabilities(page)
    assert sum(first.values()) == pytest.approx(1, abs=0.01)
    assert "glaucoma" in first
    assert page.locator(".kf-near img").count() >= 5
    assert files_below(address[1]) == []  # the upload is gone once it is answered
    assert "Jane" not in page.content()
    link = page.locator(".kf-csv").get_attribute("href")
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link.partition(",")[2]).decode())))
    assert [row["image"] for row in rows] == ["1", "2"]

    box = page.locator("#kf-categories input")
    box.fill("macular hole")
    box.press("Enter")
    page.wait_for_function("document.querySelector('.kf-bars').innerText.includes('macular hole')")
    assert len(probabilities(page)) == len(first) + 1

    similarity = page.locator("#kf-heat img").get_attribute("src")
    page.get_by_label("attention").click()
    page.wait_for_function(f"document.querySelector('#kf-heat img')?.src.length != {len(similarity)}")
    page.locator("#kf-target input").click()
    words = page.locator("ul[role=listbox] li").all_inner_texts()
    assert any(re.search(r"\b2\. ", word) for word in words)
    before = page.locator("#kf-heat img").get_attribute("src")
    page.locator("ul[role=listbox] li").nth(1).click()
    page.wait_for_function("before => document.querySelector('#kf-heat img').src != before", arg=before)


def test_a_text_file_named_png_is_told_and_the_page_lives_on(browse, tmp_path):
    (tmp_path / "note.png").write_text("no image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    page = browse()
    page.set_input_files("input[type=file]", str(tmp_path / "note.png"))
    page.wait_for_selector(".kf-problem")
    assert "File 1: not an image" in page.inner_text("#kf-results")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "blank.png")
    page.set_input_files(
        "input[type=file]", [str(tmp_path / f"{n}.png") for n in ("empty", "blank")] + [drawn(tmp_path)]
    )
    page.wait_for_selector(".kf-card")
    assert "File 1: the image file is empty" in page.inner_text("#kf-results")
    assert "File 2: the picture shows nothing" in page.inner_text("#kf-results")
    assert page.locator(".kf-card").count() == 1


def test_two_uploads_at_once(browse, tmp_path):
    one, two = browse(), browse()
    one.set_input_files("input[type=file]", drawn(tmp_path))
    two.set_input_files("input[type=file]", [drawn(tmp_path, 1), drawn(tmp_path, 2)])
    for page, count in ((one, 1), (two, 2)):
        page.wait_for_selector(f".kf-card >> nth={count - 1}")
        assert page.locator(".kf-card").count() == count


@pytest.mark.long
def test_the_session_not_used_for_longest_is_told_to_upload_again(browse, tmp_path):
    first = browse()
    first.set_input_files("input[type=file]", drawn(tmp_path))
    first.wait_for_selector(".kf-card")
    for _ in range(4):
        other = browse()
        other.locator("#kf-examples img").first.click()
        other.wait_for_selector(".kf-card")
    first.get_by_label("OCT", exact=True).click()
    first.wait_for_selector(".kf-problem")
    assert "upload them again" in first.inner_text("#kf-results")


def test_a_phone_wide_window_and_an_example(browse):
    page = browse(390, 844)
    page.locator("#kf-examples img").nth(1).click()
    page.wait_for_selector(".kf-card")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "Research use, not a diagnosis" in page.inner_text("body")


@contextmanager
def visit(profile):
    """A browser with a folder of its own on the disk, as a person's has."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=flags)
        browser.set_default_timeout(30_000)
        yield browser
        browser.close()


STORED = """async () => {
  const names = await caches.keys(), found = [];
  for (const name of names) found.push(...(await (await caches.open(name)).keys()).map((request) => request.url));
  return [Object.entries(localStorage), (await indexedDB.databases()).map((base) => base.name), names, found,
          Object.entries(sessionStorage), document.cookie];
}"""


def test_nothing_of_a_visit_stays_in_the_browser(address, tmp_path):
    profile = tmp_path / "profile"
    with visit(profile) as browser:
        page = browser.new_page()
        page.goto(address[0])
        page.wait_for_selector("#kf-results")
        page.set_input_files("input[type=file]", [drawn(tmp_path), drawn(tmp_path, 1)])
        page.wait_for_selector(".kf-card >> nth=1")
        caption = page.locator(".kf-caption").first.inner_text().removeprefix("Caption:").strip()
        page.wait_for_timeout(1500)  # for what is stored after an answer
        page.goto(f"{address[0]}robots.txt")  # the same origin, without a script of ours
        assert page.evaluate(STORED) == [[], [], [], [], [], ""]
    with visit(profile) as browser:
        page = browser.new_page()
        page.goto(f"{address[0]}robots.txt")
        assert page.evaluate(STORED) == [[], [], [], [], [], ""]
        page.goto(f"{address[0]}gradio_api/runs")
        assert "Jane" not in page.content()
        page.goto(address[0])
        page.wait_for_selector("#kf-results")
        assert page.locator(".kf-card").count() == 0
    words = [word.encode(code) for word in ("Jane_Doe", "kf-card", caption) for code in ("utf-8", "utf-16-le")]
    for path in profile.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not any(word in content for word in words), path.relative_to(profile)


def ask(url, path, host=None, method="GET", body=None, **headers):
    """Status and body of a request, with any Host."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request(method, path, body, {"Host": host or parts.netloc, **headers})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_keeps_uploads_is_not_to_be_had(address):
    for path in ("runs", "runs/", "run-history/buckets", "run-history/records", "deep_link", "deep_link?session_hash=a",
                 "file=/etc/passwd", "file=/proc/self/environ", "proxy=http://example.org"):  # fmt: skip
        assert ask(address[0], f"/gradio_api/{path}")[0] == 404, path
    assert ask(address[0], "/monitoring")[0] == 404
    assert ask(address[0], "/?deep_link=abc")[1] == ask(address[0], "/")[1]


def test_only_names_that_were_asked_for_are_answered(address):
    port = urlsplit(address[0]).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert ask(address[0], "/", host)[0] == 200, host
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"localhost:{port + 1}",
                 f"user@localhost:{port}", "localhost", f"0.0.0.0:{port}", " "):  # fmt: skip
        status, body = ask(address[0], "/", host)
        assert status in (400, 403), host
        assert b"evil" not in body
    for origin in ("http://evil.example", f"http://evil.example:{port}", "null"):
        assert ask(address[0], "/gradio_api/queue/join", method="POST", body="{}", Origin=origin)[0] == 403
    assert ask(address[0], "/gradio_api/info", **{"Sec-Fetch-Site": "cross-site"})[0] == 403


def part(name, filename, content=b"x"):
    told = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return f"--b\r\nContent-Disposition: {told}\r\n\r\n".encode() + content + b"\r\n"


@pytest.mark.parametrize("name", [None, "", ".", "/", "..", "???"])
def test_an_upload_without_a_name_is_refused(address, name):
    body = part("files", name) + b"--b--\r\n"
    status, words = ask(address[0], "/gradio_api/upload", method="POST", body=body,
                        **{"Content-Type": "multipart/form-data; boundary=b"})  # fmt: skip
    assert 400 <= status < 500
    assert b"Traceback" not in words


def test_an_upload_that_is_no_form_or_too_large_is_refused(address):
    for body, kind in (
        (b"junk", "multipart/form-data; boundary=b"),
        (b"", "text/plain"),
        (b"x", "multipart/form-data"),
    ):
        status, _ = ask(address[0], "/gradio_api/upload", method="POST", body=body, **{"Content-Type": kind})
        assert 400 <= status < 500, kind
    endless = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(10**12)}
    assert ask(address[0], "/gradio_api/upload", method="POST", body=b"", **endless)[0] == 413
    assert ask(address[0], "/gradio_api/queue/join", method="POST", body=b"{" + b" " * 2_000_000)[0] == 413


def test_an_example_given_as_an_upload_stays_for_everybody(address, service, tmp_path):
    example = next(address[1].rglob("examples/0.png"))
    upload = tmp_path / "uploads" / "hash" / "eye.png"
    upload.parent.mkdir(parents=True)
    shutil.copy(example, upload)
    link = upload.with_name("link.png")
    link.symlink_to(example)
    Handlers(service, tmp_path / "uploads").uploaded([str(example), str(upload), str(link)], "guess", [], "similarity")
    assert example.exists()
    assert not upload.exists()


def test_a_dicom_file_is_looked_at_like_a_png_and_removed(service, tmp_path):
    pydicom_data = pytest.importorskip("pydicom.data")
    upload = tmp_path / "uploads" / "hash" / "eye.dcm"
    upload.parent.mkdir(parents=True)
    shutil.copy(pydicom_data.get_testdata_file("CT_small.dcm", download=False), upload)
    seen, *_ = Handlers(service, tmp_path / "uploads").uploaded([str(upload)], "guess", [], "similarity")
    assert [image.image.size for image in seen] == [(128, 128)]
    assert not upload.exists()


def test_files_that_wait_for_others_are_not_taken_for_left_behind(service, tmp_path):
    uploads = tmp_path / "uploads"
    paths = []
    for number in range(2):
        (uploads / f"{number}").mkdir(parents=True)
        paths.append(shutil.copy(drawn(tmp_path, number), uploads / f"{number}" / "eye.png"))
        os.utime(paths[-1], (time.time() - 3600,) * 2)

    class Slow:
        def __getattr__(self, name):
            return getattr(service, name)

        def look(self, image):
            forget(SimpleNamespace(session_data={}, time_last_used={}), uploads)  # as the page's watch does
            return service.look(image)

    seen, *_ = Handlers(Slow(), uploads).uploaded([str(path) for path in paths], "guess", [], "similarity")
    assert len(seen) == 2
    assert files_below(uploads) == []


def test_what_a_session_keeps_of_a_large_picture_is_small(service):
    large = Image.new("RGB", (7000, 7000), "maroon")
    seen = service.look(large)
    assert max(seen.image.size) == 640
    kept = [
        *(word.heat for word in seen.explanation.words),
        np.asarray(seen.image),
        np.asarray(seen.explanation.picture),
    ]
    assert sum(array.nbytes for array in kept) < 4_000_000
    assert service.look(Image.new("RGB", (300, 200))).image.size == (300, 200)  # never enlarged


def test_pictures_that_are_gone_are_told(service):
    handlers = Handlers(service, Path("none"))
    results, _, heat = handlers.asked_anew([], "guess", ["normal", "glaucoma"], "similarity", "1", "normal")
    assert "upload them again" in results
    assert "upload them again" in heat
