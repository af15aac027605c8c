"""What stands between the network and Gradio: only what the page needs comes through, and nothing stays in a browser.

Gradio grows with every release, and some of what it brings keeps uploads: a run history in the browser, links to a
session, a history on a hub. So this lets through what is known to be needed, and nothing that is new.
"""

import http.client
import ipaddress
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from keepfit_clip.errors import ConfigError

__all__ = ["Guard", "check_guarded", "forgetful"]

_LOG = logging.getLogger(__name__)
_API = "/gradio_api"
_PAGE = "/"
_UPLOAD = f"{_API}/upload"
# Everything that the page asks for; each of the folders holds only Gradio's own files, the same for everybody.
_PATHS = {_PAGE, "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", _UPLOAD,
          f"{_API}/startup-events", f"{_API}/info", f"{_API}/app_id", f"{_API}/theme.css", f"{_API}/queue/join",
          f"{_API}/queue/data", f"{_API}/cancel", f"{_API}/reset", f"{_API}/upload_progress"}  # fmt: skip
_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{_API}/heartbeat/")
_CACHEABLE = ("/assets/", "/static/", "/svelte/", "/favicon.ico", "/theme.css")
_MOST_JSON = 1_000_000  # bytes of a request that is no upload
_ANYWHERE = ("0.0.0.0", "::", "")

# Before any script of Gradio's: what is stored lives as long as the tab.
_FORGET = """<script>(() => {
  const memory = () => {
    const kept = new Map(), has = (name) => kept.has(String(name));
    return {
      getItem: (name) => has(name) ? kept.get(String(name)) : null,
      setItem: (name, value) => { kept.set(String(name), String(value)); },
      removeItem: (name) => { kept.delete(String(name)); },
      clear: () => kept.clear(),
      key: (number) => [...kept.keys()][number] ?? null,
      get length() { return kept.size; },
    };
  };
  const replace = (owner, name, value) => Object.defineProperty(owner, name, {value, configurable: false});
  for (const name of ["localStorage", "sessionStorage"]) replace(window, name, memory());
  for (const name of ["indexedDB", "caches", "cookieStore"]) replace(window, name, undefined);
  for (const name of ["serviceWorker", "storage"]) replace(navigator, name, undefined);
})()</script>"""


def forgetful(page: bytes) -> bytes:
    """The page's HTML with a script before all others that leaves a browser nothing to store in.

    Raises:
        ValueError: there is no head to put it into.
    """
    before, head, after = page.partition(b"<head>")
    if not head:
        raise ValueError("no <head>")
    return before + head + _FORGET.encode() + after


class Guard:
    """ASGI middleware of the page.

    Args:
        app: what comes behind.
        host: the address that the page is bound to.
        names: further names of this machine, each for any port or as NAME:PORT.
        types: suffixes of the files that may be uploaded.
        most: bytes of an upload.
    """

    def __init__(self, app, host: str, names: Sequence[str], types: Sequence[str], most: int):
        self.app, self.host, self.types, self.most = app, host.strip("[]").lower(), tuple(types), most
        self.names = {name.lower() for name in names}

    async def __call__(self, scope, receive, send):
        """Answers a request, itself or by what comes behind."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].rstrip("/") or _PAGE
        if not self._is_ours(headers.get(b"host", ""), scope):
            return await _answer(send, 403, "this page is not to be had under that name; see --allow-host")
        if not self._is_same_origin(headers, scope):
            return await _answer(send, 403, "another page asks")
        if not self._is_needed(path):
            return await _answer(send, 404, "no such place on this page")
        most = self.most if path == _UPLOAD else _MOST_JSON
        if int(headers.get(b"content-length") or 0) > most:
            return await _answer(send, 413, "too large")
        # A link to a session and a history on a hub are asked for so.
        kept = [(name, value) for name, value in scope["headers"] if b"history" not in name.lower()]
        scope = scope | {"headers": kept} | ({"query_string": b""} if path == _PAGE else {})
        return await _Exchange(self.app, path, self.types, most, send).run(scope, receive)

    def _is_ours(self, host: str, scope) -> bool:
        """Whether a Host or an Origin's name and port are those of the page."""
        name, port = _split(host)
        address, own_port = (scope.get("server") or ("", None))[:2]
        if name in self.names or f"{name}:{port}" in self.names:
            return True
        if not name or port != own_port:
            return False
        if name == self.host and self.host not in _ANYWHERE:
            return True
        if _is_loopback(address):  # nobody else's name for this machine, whoever asks
            return name == "localhost" or _is_loopback(name)
        return self.host in _ANYWHERE and name == _plain(
            address
        )  # an address cannot be bound to another, as a name can

    def _is_same_origin(self, headers: dict, scope) -> bool:
        """Whether what changes something comes from the page itself; programs say no origin."""
        origin = headers.get(b"origin")
        if origin is None:
            return headers.get(b"sec-fetch-site", "none") in ("none", "same-origin") or scope["path"] == _PAGE
        return self._is_ours(urlsplit(origin).netloc, scope)

    def _is_needed(self, path: str) -> bool:
        return path in _PATHS or (path.startswith(_FOLDERS) and ".." not in path)


class _Exchange:
    """One request and its answer."""

    def __init__(self, app, path: str, types: tuple[str, ...], most: int, send):
        self.app, self.path, self.types, self.most, self.send = app, path, types, most, send
        self.received = 0
        self.start, self.body = None, b""
        self.whole = path in (_PAGE, _UPLOAD)  # these answers are looked at before they go out

    async def run(self, scope, receive):
        async def counted():
            message = await receive()
            self.received += len(message.get("body", b""))
            if self.received > self.most:
                raise _TooLarge
            return message

        try:
            await self.app(scope, counted, self._sent)
        except _TooLarge:
            await _answer(self.send, 413, "too large")
        except Exception:
            # Gradio's own answer to an upload it cannot take apart is a traceback.
            if self.path != _UPLOAD or (self.start and not self.whole):
                raise
            _LOG.debug("an upload that Gradio does not take", exc_info=True)
            await _answer(self.send, 400, "the upload holds something that is no named file")

    async def _sent(self, message):
        if message["type"] == "http.response.start":
            message = message | {"headers": self._headers(message["headers"])}
            if self.whole:
                self.start = message
                return
        elif self.whole and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self._inspect_and_send()
            return
        await self.send(message)

    def _headers(self, headers):
        added = {b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer", b"x-frame-options": b"DENY"}
        if not self.path.startswith(_CACHEABLE):
            added[b"cache-control"] = b"no-store"
        if self.path == _PAGE:  # what another version of the page has left
            added[b"clear-site-data"] = b'"storage"'
        return [(name, value) for name, value in headers if name.lower() not in added] + list(added.items())

    async def _inspect_and_send(self):
        if self.start["status"] == 200 and self.path == _PAGE and self.body:
            self.body = forgetful(self.body)
        uploaded = json.loads(self.body) if self.start["status"] == 200 and self.path == _UPLOAD else []
        if any(Path(name).is_dir() or not name.lower().endswith(self.types) for name in uploaded):
            for name in uploaded:
                with suppress(OSError):
                    Path(name).unlink()
            return await _answer(self.send, 400, f"only files named {', '.join(self.types)} can be uploaded")
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(self.body)).encode()))
        await self.send(self.start | {"headers": headers})
        await self.send({"type": "http.response.body", "body": self.body})
        return None


class _TooLarge(Exception):
    """More came than was announced."""


async def _answer(send, status: int, words: str) -> None:
    body = words.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"cache-control", b"no-store")]}
    )
    await send({"type": "http.response.body", "body": body})


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; no name if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return "", None
        return (parts.hostname or "").rstrip("."), parts.port or 80
    except ValueError:
        return "", None


def _plain(address: str) -> str:
    """An IP address as browsers write it: IPv4 that came over an IPv6 socket as IPv4."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(_plain(address)).is_loopback
    except ValueError:
        return False


def check_guarded(address: str) -> None:
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
