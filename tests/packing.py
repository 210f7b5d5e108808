"""Files packed together in every form that is read, and what is found in them."""

import base64
import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

Files = Mapping[str, bytes]


def packed_zip(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return archive.getvalue()


def packed_tar(files: Files, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode, format=form) as opened:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def ndjson(files: Files) -> bytes:
    lines = [{"image": base64.b64encode(content).decode(), "id": name} for name, content in files.items()]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def form(files: Files) -> bytes:
    """A multipart body with the boundary "b"."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n'
    return b"".join(head % (name.encode(), content) for name, content in files.items()) + b"--b--\r\n"


FORMS: dict[str, tuple[str, Any]] = {
    "form": ("multipart/form-data; boundary=b", form),
    "zip": ("application/zip", packed_zip),
    "tar": ("application/x-tar", packed_tar),
    "tar.gz": ("application/gzip", lambda files: packed_tar(files, "w:gz")),
    "NDJSON": ("application/x-ndjson", ndjson),
}
"""What each form is called, its Content-Type, and how files come into it."""


async def pieces(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for piece in split(body, size):
        yield piece


def split(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
