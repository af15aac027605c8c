"""The real page in a real browser, and what its server gives away."""

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
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.pictures import drawn, files_below

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FILES = "#kf-files input[type=file]"
COLOURS = "#kf-heat .kf-colours"

pytestmark = pytest.mark.long


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


def probabilities(page):
    """What the first card says."""
    rows = page.locator(".kf-card").first.locator(".kf-bars tbody tr")
    names, values = rows.locator("th").all_inner_texts(), rows.locator(".kf-number").all_inner_texts()
    return dict(zip(names, map(float, values), strict=True))


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
