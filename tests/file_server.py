"""A small file server on 127.0.0.1 for the download tests: ranges, cut connections, and the hub's headers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Seen(NamedTuple):
    """A request as it arrived; ``range`` is empty where there was none."""

    method: str
    path: str
    range: str


@dataclass
class FileServer:
    """What is served, and what was asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    """Path -> how many bytes of the next answer's body are sent before the connection is dropped."""
    kind: str = "application/octet-stream"
    seen: list[Seen] = field(default_factory=list)

    def gets(self, path: str) -> list[str]:
        """The ranges that GET requests for a path asked for."""
        return [request.range for request in self.seen if request[:2] == ("GET", path)]


@contextmanager
def serving() -> Iterator[FileServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.state = FileServer(f"http://127.0.0.1:{http.server_port}")  # type: ignore[attr-defined]
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield http.state  # type: ignore[attr-defined]
        finally:
            http.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        state, body = self.server.state, self._answer()  # type: ignore[attr-defined]
        self.wfile.write(body[: state.cut_after.pop(self.path, None)])

    def _answer(self) -> bytes:
        """Sends the head, and returns the body that belongs to it."""
        state: FileServer = self.server.state  # type: ignore[attr-defined]
        asked = self.headers.get("Range", "")
        state.seen.append(Seen(self.command, self.path, asked))
        content = state.files.get(self.path)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if content is None:
            self.send_response(404)
            self._end_headers({"Content-Length": "0", "X-Error-Code": "EntryNotFound"})
            return b""
        self.send_response(206 if start else 200)
        body = content[start:]
        self._end_headers(
            {"Content-Type": state.kind, "Content-Length": str(len(body)), "ETag": f'"{sha256(content).hexdigest()}"'}
        )
        return body

    def _end_headers(self, headers: dict[str, str]) -> None:
        if "/resolve/" in self.path and "ETag" in headers:  # what the hub adds
            headers |= {"X-Repo-Commit": COMMIT, "X-Linked-Etag": headers["ETag"]}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
