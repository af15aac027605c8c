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
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.app.guard import Guard, check_guarded
from keepfit_clip.app.handlers import Asked, Handlers
from keepfit_clip.app.service import Gallery, Service
from keepfit_clip.app.table import Row, as_csv
from keepfit_clip.app.uploads import forget
from keepfit_clip.app.words import content_words, opening_word
from keepfit_clip.cli import app
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import CategoryError, CheckpointError, ConfigError, ImageError, KeepFITWarning
from keepfit_clip.evaluate.pairs import read_pairs
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images.reading import open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.modality import ModalityGuess
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from tests.test_vendor_files import write_vol

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CATEGORIES = ("normal", "glaucoma", "cataract")
FILES = "#kf-files input[type=file]"
COLOURS = "#kf-heat .kf-colours"


@pytest.fixture(scope="module")
def service(exported, shards):
    loaded = load_model(exported)
    return Service(loaded, Knowledge.load(), Gallery(loaded, read_pairs(shards / "elite", None), None))


@pytest.fixture(scope="module")
def seen(service):
    return service.look(draw_retina("CFP", "glaucoma", 3, 96).image)


def test_answers_are_the_classifiers(service, seen):
    assert seen.modality() == ("CFP", "guess")
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


def test_an_image_of_no_sure_modality_is_asked_in_words_of_none(service):
    unsure = service.look(Image.new("RGB", (96, 96), (90, 90, 90)))
    unsure = replace(unsure, guess=ModalityGuess({"CFP": 0.5, "FFA": 0.4, "OCT": 0.1}))
    answer = service.answer(unsure, CATEGORIES)
    assert (answer.modality, answer.said_by) == (None, "unsure")
    loaded = service.loaded
    expected = ZeroShotClassifier(loaded.model, loaded.tokenizer, CATEGORIES).classes.probabilities(unsure.features)
    assert list(answer.probabilities.values()) == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)


def test_what_somebody_says_of_one_image_comes_first(service, seen):
    assert replace(seen, told="OCT").modality() == ("OCT", "file")
    assert replace(seen, told="OCT").modality("FFA") == ("FFA", "all")
    assert replace(seen, told="OCT", chosen="CFP").modality("FFA") == ("CFP", "chosen")


def test_heat_maps_of_categories_and_words(service, seen):
    for kind in ("similarity", "Grad-CAM"):
        heat = service.heat(seen, kind, "glaucoma", CATEGORIES, None)
        assert heat.colours().size == heat.picture.size == (64, 64)
        low, high = heat.ends
        assert low < high == heat.heat.max()
        clear = np.asarray(heat.colours())[..., 3]
        assert clear[np.unravel_index(heat.heat.argmax(), heat.heat.shape)] == 255
        assert (clear[heat.heat <= low] == 0).all()
    words = service.words(seen)
    assert words[0].startswith("1. ")
    assert service.heat(seen, "attention", words[0], CATEGORIES, None).heat.min() >= 0
    with pytest.raises(ConfigError, match="no word of the caption"):
        service.heat(seen, "attention", "glaucoma", CATEGORIES, None)
    with pytest.raises(ConfigError, match="none of the categories"):
        service.heat(seen, "similarity", "drusen", CATEGORIES, None)


def test_attention_opens_on_a_word_that_says_something():
    caption = "This is a picture of the left eye: no drusen, but diabetic macular edema."
    words = caption.split()
    assert words[opening_word(caption, words, Knowledge.load())] == "drusen,"
    chosen = [words[place] for place in content_words(words)]
    assert chosen == ["picture", "left", "eye:", "no", "drusen,", "diabetic", "macular", "edema."]
    assert opening_word("It is what it is.", ["It", "is", "what", "it", "is."], Knowledge.load()) == 0


def test_the_gallery_gives_the_nearest_first_and_itself_before_all(service, exported, shards):
    record = service.gallery.records[3]
    found = service.look(open_image(record.image.read())).nearest
    assert found[0][2] == pytest.approx(1, abs=1e-3)
    assert found[0][1] == service.gallery.captions[3][0]
    assert [value for *_, value in found] == sorted((value for *_, value in found), reverse=True)
    assert found[0][0].startswith("data:image/jpeg;base64,")


def table_of(service, images, categories, names=True):
    rows = [Row.of_image(n, image, service.answer(image, categories, "CFP")) for n, image in enumerate(images, 1)]
    return as_csv([*rows, Row(len(rows) + 1, "torn.png", problem="torn")], categories, names)


def test_a_table_of_several_images(service, seen):
    rows = list(csv.DictReader(io.StringIO(table_of(service, [seen, replace(seen, name="eye.png")], CATEGORIES))))
    assert [row["image"] for row in rows] == ["1", "2", "3"]
    assert [row["file"] for row in rows] == ["", "eye.png", "torn.png"]
    assert [row["modality said by"] for row in rows] == ["all", "all", ""]
    assert sum(float(rows[0][name]) for name in CATEGORIES) == pytest.approx(1, abs=1e-4)
    assert rows[0]["caption"] == seen.caption
    assert (rows[2]["problem"], rows[2]["glaucoma"]) == ("torn", "")
    assert "eye.png" not in table_of(service, [replace(seen, name="eye.png")], CATEGORIES, names=False)


def test_a_category_or_a_name_in_the_table_is_no_formula(service, seen):
    with pytest.warns(KeepFITWarning, match="judged by the name alone"):
        table = table_of(service, [replace(seen, name="=2+2.png")], ["=1+1", "@SUM(A1)"])
    rows = list(csv.reader(io.StringIO(table)))
    assert rows[0][4:6] == ["'=1+1", "'@SUM(A1)"]
    assert rows[1][1] == "'=2+2.png"


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
    guard = Guard(_answered, bound, names, [".png"], 1000)
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
    assert not any(word in (folder / "log").read_text() for word in ("Traceback", "Jane"))


@pytest.fixture
def browse(address):
    """Opens the page, as wide as asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)

        def open_page(width=1200, height=900, theme="light"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
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
    rows = page.locator(".kf-card").first.locator(".kf-bars tbody tr")
    names, values = rows.locator("th").all_inner_texts(), rows.locator(".kf-number").all_inner_texts()
    return dict(zip(names, map(float, values), strict=True))


def files_below(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.stat().st_size
        and path.name != "_remote_module_non_scriptable.py"  # torch's own, before 2.9
    ]


def csv_rows(page, link=".kf-csv"):
    content = base64.b64decode(page.locator(link).first.get_attribute("href").partition(",")[2]).decode()
    return list(csv.DictReader(io.StringIO(content)))


def test_upload_read_change_and_look(browse, address, tmp_path):
    page = browse()
    page.set_input_files(FILES, [drawn(tmp_path), drawn(tmp_path, 1)])
    page.wait_for_selector(".kf-card >> nth=1")
    first = probabilities(page)
    assert sum(first.values()) == pytest.approx(1, abs=0.01)
    assert "glaucoma" in first
    assert page.locator(".kf-near img").count() >= 5
    assert files_below(address[1]) == []  # the upload is gone once it is answered
    assert page.locator(".kf-card h2").all_inner_texts() == ["Image 1 Jane_Doe_0.png", "Image 2 Jane_Doe_1.png"]
    assert "Jane" not in browse().content()  # nobody else sees it
    assert [(row["image"], row["file"]) for row in csv_rows(page)] == [("1", "Jane_Doe_0.png"), ("2", "Jane_Doe_1.png")]
    assert "file" not in csv_rows(page, ".kf-csv-nameless")[0]

    box = page.locator("#kf-categories input")
    box.fill("macular hole")
    box.press("Enter")
    page.wait_for_function("document.querySelector('.kf-bars').innerText.includes('macular hole')")
    assert len(probabilities(page)) == len(first) + 1

    similarity = page.locator(COLOURS).get_attribute("src")
    page.get_by_label("attention", exact=True).click()
    page.wait_for_function(f"document.querySelector('{COLOURS}')?.src.length != {len(similarity)}")
    before = page.locator(COLOURS).get_attribute("src")
    page.get_by_label("function words too").check()
    page.locator("#kf-target input").click()
    words = page.locator("ul[role=listbox] li").all_inner_texts()
    assert any(re.search(r"\b2\. ", word) for word in words)
    opened = page.locator("#kf-target input").input_value()
    page.locator("ul[role=listbox] li").nth(int(opened.startswith("1. "))).click()
    page.wait_for_function(f"before => document.querySelector('{COLOURS}').src != before", arg=before)


def test_a_modality_is_corrected_by_one_click_of_its_own_image(browse, tmp_path):
    page = browse()
    page.set_input_files(FILES, [drawn(tmp_path), drawn(tmp_path, 1)])
    page.wait_for_selector(".kf-card >> nth=1")
    cards = page.locator(".kf-card")
    assert "CFP (guessed" in cards.nth(0).inner_text()
    before = probabilities(page)
    cards.nth(0).get_by_role("button", name="OCT").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("button[data-modality=OCT][aria-pressed=true]")
    assert "OCT (you said so)" in cards.nth(0).inner_text()
    assert "CFP (guessed" in cards.nth(1).inner_text()
    assert probabilities(page) != before
    assert [row["modality"] for row in csv_rows(page)] == ["OCT", "CFP"]
    assert page.evaluate("document.activeElement.dataset") == {"image": "1", "modality": "OCT"}  # the focus stays
    page.keyboard.press("Enter")  # taken back
    cards.nth(0).locator("button[data-modality=OCT][aria-pressed=false]").wait_for()
    assert probabilities(page) == before
    page.locator("#kf-modality").get_by_label("FFA").click()
    page.wait_for_function("document.querySelectorAll('.kf-card')[1].innerText.includes('FFA (you said so of all)')")


def test_two_images_side_by_side(browse, tmp_path):
    page = browse()
    page.set_input_files(FILES, [drawn(tmp_path), drawn(tmp_path, 1), drawn(tmp_path, 2)])
    page.wait_for_selector(".kf-card >> nth=2")
    page.locator("#kf-compare > button").click()
    page.wait_for_selector(".kf-pair img >> nth=1")
    assert "Image 2" in page.inner_text(".kf-pair")
    for row in page.locator(".kf-pair-table tbody tr").all():
        one, two, change = map(float, row.locator(".kf-number").all_inner_texts())
        assert change == pytest.approx(two - one, abs=0.0015)
    page.locator("#kf-two input").click()
    page.locator("ul[role=listbox] li").nth(2).click()
    page.wait_for_function("document.querySelector('.kf-pair').innerText.includes('Image 3')")


@pytest.mark.long
def test_a_folder_is_a_table_that_can_be_stopped(browse, address, tmp_path):
    (tmp_path / "eyes" / "deep").mkdir(parents=True)
    pictures = [Path(drawn(tmp_path, number)) for number in range(2)]
    for number in range(20):
        shutil.copy(pictures[number % 2], tmp_path / "eyes" / "deep" / f"{number:03}.png")
    (tmp_path / "eyes" / "torn.png").write_text("no image at all")
    (tmp_path / "eyes" / "notes.txt").write_text("not looked at")
    page = browse()
    page.locator("#kf-folder > button").click()
    page.set_input_files("#kf-folder input[type=file]", tmp_path / "eyes")
    page.wait_for_function("document.querySelector('.kf-progress')?.innerText.includes('21 of 21')")
    page.wait_for_selector("#kf-folder-table tbody tr >> nth=20")
    assert "1 of them without an answer" in page.inner_text(".kf-progress")
    assert files_below(address[1]) == []
    rows = csv_rows(page)
    assert sorted(row["file"] for row in rows) == [*(f"{number:03}.png" for number in range(20)), "torn.png"]
    assert {row["modality"] for row in rows if not row["problem"]} == {"CFP"}
    for number in range(20, 200):
        shutil.copy(pictures[number % 2], tmp_path / "eyes" / "deep" / f"{number:03}.png")
    page.set_input_files("#kf-folder input[type=file]", tmp_path / "eyes")
    page.wait_for_function("document.querySelector('.kf-progress')?.innerText.includes('of 201')")
    page.locator("#kf-stop").click()
    page.wait_for_function("document.querySelector('.kf-progress').innerText.includes('stopped')")
    done = int(page.inner_text(".kf-progress").split()[0])
    assert len(csv_rows(page)) == done < 201
    for _ in range(40):
        if not files_below(address[1]):
            break
        time.sleep(0.25)
    assert files_below(address[1]) == []


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (390, "dark")])
def test_the_page_passes_axe(browse, tmp_path, width, theme):
    from axe_playwright_python.sync_playwright import Axe

    page = browse(width, 900, theme)
    page.set_input_files(FILES, [drawn(tmp_path), drawn(tmp_path, 1)])
    page.wait_for_selector(".kf-card >> nth=1")
    page.locator("#kf-compare > button").click()
    page.locator("#kf-folder > button").click()
    (tmp_path / "eyes").mkdir()
    drawn(tmp_path / "eyes")
    page.set_input_files("#kf-folder input[type=file]", tmp_path / "eyes")
    page.wait_for_selector("#kf-folder .kf-csv")
    page.get_by_label("attention", exact=True).click()
    page.get_by_label("function words too").wait_for()
    page.wait_for_timeout(500)  # for what fades in
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 20  # it has looked


def test_everything_is_reached_by_keyboard(browse):
    page = browse()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id^=kf-]')?.id"))
        if reached[-1] == "kf-examples":
            page.keyboard.press("Enter")
            page.wait_for_selector(".kf-card")
            break
    assert reached[-1] == "kf-examples"
    page.locator("#kf-opacity input[type=range]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    opacity = f"getComputedStyle(document.querySelector('{COLOURS}')).opacity"
    page.wait_for_function(f"{opacity} == '0.7'")


def test_a_text_file_named_png_is_told_and_the_page_lives_on(browse, tmp_path):
    (tmp_path / "note.png").write_text("no image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    page = browse()
    page.set_input_files(FILES, str(tmp_path / "note.png"))
    page.wait_for_selector(".kf-problem")
    assert "File 1, note.png: not an image" in page.inner_text("#kf-results")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "blank.png")
    page.set_input_files(FILES, [str(tmp_path / f"{n}.png") for n in ("empty", "blank")] + [drawn(tmp_path)])
    page.wait_for_selector(".kf-card")
    assert "File 1, empty.png: the image file is empty" in page.inner_text("#kf-results")
    assert "File 2, blank.png: the picture shows nothing" in page.inner_text("#kf-results")
    assert page.locator(".kf-card").count() == 1


def test_two_uploads_at_once(browse, tmp_path):
    one, two = browse(), browse()
    one.set_input_files(FILES, drawn(tmp_path))
    two.set_input_files(FILES, [drawn(tmp_path, 1), drawn(tmp_path, 2)])
    for page, count in ((one, 1), (two, 2)):
        page.wait_for_selector(f".kf-card >> nth={count - 1}")
        assert page.locator(".kf-card").count() == count


@pytest.mark.long
def test_the_session_not_used_for_longest_is_told_to_upload_again(browse, tmp_path):
    first = browse()
    first.set_input_files(FILES, drawn(tmp_path))
    first.wait_for_selector(".kf-card")
    for _ in range(4):
        other = browse()
        other.locator("#kf-examples button").first.click()
        other.wait_for_selector(".kf-card")
    first.locator("#kf-modality").get_by_label("OCT").click()
    first.wait_for_selector(".kf-problem")
    assert "upload them again" in first.inner_text("#kf-results")


def test_a_phone_wide_window_and_an_example(browse):
    page = browse(390, 844)
    page.locator("#kf-examples button").nth(1).click()
    page.wait_for_selector(".kf-card")
    controls, answers, maps = (page.locator(f"#kf-{part}").bounding_box() for part in ("controls", "answers", "maps"))
    assert controls["y"] < answers["y"] < maps["y"]
    assert answers["y"] + answers["height"] <= maps["y"]
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


@pytest.mark.long
def test_nothing_of_a_visit_stays_in_the_browser(address, tmp_path):
    profile = tmp_path / "profile"
    with visit(profile) as browser:
        page = browser.new_page()
        page.goto(address[0])
        page.wait_for_selector("#kf-results")
        page.set_input_files(FILES, [drawn(tmp_path), drawn(tmp_path, 1)])
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


def test_a_file_elsewhere_that_is_named_as_an_upload_stays(service, tmp_path):
    other = Path(drawn(tmp_path))
    upload = tmp_path / "uploads" / "hash" / "eye.png"
    upload.parent.mkdir(parents=True)
    shutil.copy(other, upload)
    link = upload.with_name("link.png")
    link.symlink_to(other)
    Handlers(service, tmp_path / "uploads").uploaded([str(other), str(upload), str(link)], Asked())
    assert other.exists()
    assert not upload.exists()


def test_a_dicom_file_is_looked_at_like_a_png_and_removed(service, tmp_path):
    pydicom_data = pytest.importorskip("pydicom.data")
    upload = tmp_path / "uploads" / "hash" / "eye.dcm"
    upload.parent.mkdir(parents=True)
    shutil.copy(pydicom_data.get_testdata_file("CT_small.dcm", download=False), upload)
    seen, *_ = Handlers(service, tmp_path / "uploads").uploaded([str(upload)], Asked())
    assert [image.image.size for image in seen] == [(128, 128)]
    assert not upload.exists()


def test_what_a_file_says_of_its_modality_is_not_guessed(service, tmp_path):
    upload = tmp_path / "uploads" / "hash" / "scan.vol"
    upload.parent.mkdir(parents=True)
    write_vol(upload, np.random.default_rng(0).uniform(0, 1, (3, 40, 30)).astype(np.float32))
    (seen,), *_ = Handlers(service, tmp_path / "uploads").uploaded([str(upload)], Asked())
    assert seen.modality() == ("OCT", "file")


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

        def look(self, *image):
            forget(SimpleNamespace(session_data={}, time_last_used={}), uploads)  # as the page's watch does
            return service.look(*image)

    seen, *_ = Handlers(Slow(), uploads).uploaded([str(path) for path in paths], Asked())
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
    asked = Asked(categories=["normal", "glaucoma"], number="1", target="normal")
    results, _, heat, _ = Handlers(service, Path("none")).asked_anew([], asked)
    assert "upload them again" in results
    assert "upload them again" in heat
