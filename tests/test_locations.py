"""Shards from anywhere: servers that fail, answer slowly or cut their answer short, commands, and what is not there."""

import contextlib
import http.server
import json
import re
import threading
from collections import Counter
from functools import partial

import fsspec
import pytest
from fsspec.registry import known_implementations

from keepfit_clip.data import list_shards, read_shards
from keepfit_clip.data.tars.reader import count_samples
from keepfit_clip.errors import MissingExtraError, ShardError


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `plan` maps a path to what goes wrong at its first requests."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.plan: dict[str, list[str]] = {}
        self.asked = Counter()
        self.ranges = True


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that hangs up
            super().handle()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server = self.server
        server.asked[self.path] += body
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except OSError:
            return self.send_error(404)
        trouble = server.plan[self.path].pop(0) if body and server.plan.get(self.path) else ""
        if trouble == "503":
            return self.send_error(503)
        start, stop, status = 0, len(content), 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if server.ranges and match:
            start, stop, status = int(match[1]), min(len(content), int(match[2] or len(content)) + 1), 206
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if body:
            part = content[start:stop]
            self.wfile.write(part[: len(part) // 2] if trouble == "cut" else part)
            if trouble == "cut":
                self.connection.close()


@pytest.fixture
def server(shards):
    found = Server(shards)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("keepfit_clip.remote.opening._FIRST_DELAY", 0.01)


def keys(spec, **options):
    return [sample.key for sample in read_shards(list_shards(spec), **options)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_folder_on_a_server_reads_like_the_folder_itself(server, shards, ranges):
    server.ranges = ranges
    assert len(list_shards(f"{server.url}/public")) == 3
    assert keys(f"{server.url}/public") == keys(shards / "public")
    assert keys(f"{server.url}/public/{{000000..000001}}.tar::{shards / 'elite'}") == [
        *keys(f"{shards}/public/{{000000..000001}}.tar"),
        *keys(shards / "elite"),
    ]
    assert count_samples(list_shards(f"{server.url}/public")) == 24


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("troubles", [["503", "503"], ["cut"], ["cut", "503", "cut"]])
def test_a_server_that_fails_now_and_then_is_asked_again(server, shards, troubles, ranges):
    server.ranges = ranges
    server.plan["/public/000001.tar"] = list(troubles)
    assert keys(f"{server.url}/public") == keys(shards / "public")
    assert server.asked["/public/000001.tar"] > len(troubles)


def test_a_shard_that_vanished_or_always_fails_is_counted_and_the_others_are_read(server, shards):
    location = f"{server.url}/public/{{000000..000003}}.tar"
    server.plan["/public/000001.tar"] = ["503"] * 100
    problems = []
    found = keys(location, on_error=problems.append)
    assert len(found) == 14
    assert len(problems) == 2
    assert "gave up after 5 attempts" in str(problems[0])
    assert "000003.tar: no such shard" in str(problems[1])
    with pytest.raises(ShardError, match="000001"):
        keys(location)


def test_a_folder_without_a_list_must_name_its_tars(server):
    with pytest.raises(ShardError, match=r"nowhere/sizes\.json does not tell which shards there are"):
        list_shards(f"{server.url}/nowhere")


def test_object_stores_are_read_through_fsspec(shards):
    memory = fsspec.filesystem("memory")
    for path in (shards / "public").iterdir():
        memory.pipe(f"/bucket/public/{path.name}", path.read_bytes())
    try:
        assert keys("memory://bucket/public") == keys(shards / "public")
        assert count_samples(list_shards("memory://bucket/public/{000000..000001}.tar")) == 20
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_protocol_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(known_implementations, "s9", {"class": "no_s9.S9", "err": "Install no_s9"})
    with pytest.raises(MissingExtraError, match=r"Install no_s9.*pip install gcsfs s3fs"):
        keys("s9://bucket/000000.tar")
    with pytest.raises(ShardError, match="nonsense"):
        keys("nonsense://bucket/000000.tar")


def test_a_command_can_give_a_shard(shards):
    path = shards / "public" / "000000.tar"
    assert keys(f"pipe:cat {path}") == keys(path)
    problems = []
    assert len(keys(f"pipe:head -c 3000 {path}", on_error=problems.append)) < 10
    assert keys("pipe:exit 3", on_error=problems.append) == []
    assert len(problems) == 2


def test_a_compressed_shard_is_read(shards, tmp_path):
    import gzip

    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress((shards / "public" / "000000.tar").read_bytes()))
    assert keys(packed) == keys(shards / "public" / "000000.tar")
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(ShardError, match="cut off"):
        keys(packed)


def test_many_shards_are_counted_by_the_list_beside_them(tmp_path):
    names = [f"{number:06d}.tar" for number in range(2000)]
    (tmp_path / "sizes.json").write_text(json.dumps(dict.fromkeys(names, 10)))
    for name in names:
        (tmp_path / name).touch()
    assert count_samples(list_shards(f"{tmp_path}/{{000000..001999}}.tar")) == 20000
