"""The page: what it asks of a model."""

import asyncio
import csv
import http.client
import http.server
import io
import os
import shutil
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

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
from tests.pictures import drawn, files_below
from tests.test_vendor_files import write_vol

CATEGORIES = ("normal", "glaucoma", "cataract")


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
