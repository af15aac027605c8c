"""The page: what it asks of a model, and the real page in a real browser."""

import base64
import csv
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.app.page import _forget
from keepfit_clip.app.service import Gallery, Service
from keepfit_clip.cli import app
from keepfit_clip.data.images import open_image
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import CategoryError, CheckpointError, ConfigError, ImageError
from keepfit_clip.knowledge import MODALITIES, Knowledge
from keepfit_clip.loading import load_model
from keepfit_clip.transfer.pairs import read_pairs
from keepfit_clip.zero_shot import ZeroShotClassifier

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
            os.utime(tmp_path / name, (time.time() - 600,) * 2)
    _forget(sessions, tmp_path)
    assert list(sessions.session_data) == list(sessions.time_last_used) == ["open"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["fresh.png"]


def test_an_address_of_another_machine_is_refused_at_once(exported):
    result = CliRunner().invoke(app, ["app", "--model", str(exported), "--host", "192.0.2.1"])
    assert isinstance(result.exception, ConfigError)
    assert "no address of this machine" in str(result.exception)


def test_no_model_and_no_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["app"])
    assert isinstance(result.exception, CheckpointError)
    assert "keepfit-clip demo" in str(result.exception)


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
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and "examples" not in path.parts
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
    page.set_input_files("input[type=file]", [str(tmp_path / "empty.png"), drawn(tmp_path)])
    page.wait_for_selector(".kf-card")
    assert "File 1: the image file is empty" in page.inner_text("#kf-results")
    assert page.locator(".kf-card").count() == 1


def test_two_uploads_at_once(browse, tmp_path):
    one, two = browse(), browse()
    one.set_input_files("input[type=file]", drawn(tmp_path))
    two.set_input_files("input[type=file]", [drawn(tmp_path, 1), drawn(tmp_path, 2)])
    for page, count in ((one, 1), (two, 2)):
        page.wait_for_selector(f".kf-card >> nth={count - 1}")
        assert page.locator(".kf-card").count() == count


def test_a_phone_wide_window_and_an_example(browse):
    page = browse(390, 844)
    page.locator("#kf-examples img").nth(1).click()
    page.wait_for_selector(".kf-card")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "Research use, not a diagnosis" in page.inner_text("body")
