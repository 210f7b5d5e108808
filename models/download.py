"""Brings published weights to this machine, once: from the Hugging Face hub, or the authors' own release."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import cached_assets_path, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined] # exported, but not marked so
from tqdm import tqdm

from models.zoo import Remote

_TIMEOUT_S = 30.0  # without a single byte
_CHUNK_BYTES = 1 << 20


class DownloadError(OSError):
    """Weights could not be had, or are not those that were asked for; the message says why."""


def fetch(remote: Remote, sha256: str | None = None) -> Path:
    """The weights' file on this machine, downloaded unless a cache has it.

    The hub comes first, through huggingface_hub: its cache, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` hold. If
    it does not give the file, for whatever reason, the authors' release does, kept in the hub's assets cache
    (``$HF_HOME/assets/volo``; ``HF_HOME`` is ``~/.cache/huggingface`` and honours ``XDG_CACHE_HOME``): one
    folder to keep or to mount. A file once fetched is used again without asking the network.

    Args:
        sha256: what the file's SHA-256 must be, in hexadecimal. The two sources' files differ.

    Raises:
        DownloadError: neither source gave the file, or the file is another than ``sha256`` pins.
    """
    return verify(_cached(remote) or _from_network(remote, sha256), sha256)


def verify(path: Path, sha256: str | None) -> Path:
    """``path`` itself, if its content has that SHA-256 or none is asked for.

    Raises:
        DownloadError: it has another.
    """
    if sha256 is not None:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256.lower():
            raise DownloadError(f"{path} has the SHA-256 {actual}, not the pinned {sha256}")
    return path


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Streams ``url`` to ``path``, which is there whole and verified or not at all, and returns ``path``.

    What a torn try leaves (``path`` with ``.part`` appended) is where the next one goes on. Of several
    processes that want the same file one downloads, the others wait for it.

    Raises:
        DownloadError: the server does not give the file, ends early, or gives another than ``sha256`` pins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with WeakFileLock(path.with_name(path.name + ".lock")):
        if not path.exists():
            try:
                _stream(url, part)
            except (OSError, HTTPException) as error:
                raise DownloadError(f"{url}: {error}") from error
            _verify_or_delete(part, sha256)
            part.replace(path)
    return path


def _cached(remote: Remote) -> Path | None:
    hub = try_to_load_from_cache(remote.hub_repo, remote.hub_file)
    if isinstance(hub, str):
        return Path(hub)
    release = _release_path(remote)
    return release if release.exists() else None


def _from_network(remote: Remote, sha256: str | None) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{remote.hub_repo} is in no cache, and HF_HUB_OFFLINE forbids the network")
    try:
        return Path(hf_hub_download(remote.hub_repo, remote.hub_file))
    except Exception as error:  # what it raises has no common base: OSError, errors of httpx, of hf_xet
        hub_error = error
    try:
        return download(remote.release_url, _release_path(remote), sha256)
    except DownloadError as error:
        raise DownloadError(f"{remote.hub_repo}: {hub_error}\n{error}") from hub_error


def _release_path(remote: Remote) -> Path:
    return cached_assets_path("volo", "releases") / remote.release_url.rpartition("/")[2]


def _stream(url: str, part: Path) -> None:
    """Appends to ``part`` what it lacks of ``url``, down to the disk."""
    with _open(url, part) as response, part.open("ab") as file:
        if response.status != 206:  # the whole file: nothing to go on from, or a server that cannot
            file.seek(0)
            file.truncate()
        length = response.length  # None: the server does not say
        total = None if length is None else file.tell() + length
        with tqdm(total=total, initial=file.tell(), desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the transfer ended after {part.stat().st_size} of {total} bytes")


def _open(url: str, part: Path) -> Any:
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code != 416:
            raise
        # nothing lies beyond what is here: it is whole, or of another file; a fresh start is right for both
        error.close()
        part.unlink()
        return _open(url, part)


def _verify_or_delete(part: Path, sha256: str | None) -> None:
    try:
        verify(part, sha256)
    except DownloadError:
        part.unlink()  # going on from it would never lead to the right file
        raise
