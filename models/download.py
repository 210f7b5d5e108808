"""Brings published weights to this machine, once: from the Hugging Face hub, or the authors' own release."""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Collection
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined] # exported, but not marked so
from tqdm import tqdm

from models.zoo import Remote

# it writes what it says to standard error, and hands it on to whoever has set logging up
logging.getLogger("huggingface_hub").handlers.clear()

_TIMEOUT_S = 30.0  # without a single byte
_CHUNK_BYTES = 1 << 20
_ABOUT_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class DownloadError(OSError):
    """Weights could not be had, or are not those that were asked for; the message says why."""


def fetch(remote: Remote, sha256: str | None = None) -> Path:
    """The weights' file on this machine, downloaded unless a cache has it.

    The first of these to have the file, the pinned one if there is a pin, gives it: the hub's cache, that of
    releases, the hub, the authors' release. The hub is asked by huggingface_hub: its cache, ``HF_ENDPOINT``
    and ``HF_HUB_OFFLINE`` hold. A release is kept in the hub's assets cache (``$HF_HOME/assets/volo``;
    ``HF_HOME`` is ``~/.cache/huggingface`` and honours ``XDG_CACHE_HOME``): one folder to keep or to mount.
    A file once fetched is used again without asking the network.

    Args:
        sha256: what the file's SHA-256 must be, in hexadecimal. The hub's file and the release's differ.

    Raises:
        DownloadError: no source gave the file, or none the one that ``sha256`` pins; it says why of each.
    """
    refused: dict[Path, DownloadError] = {}
    for path in cached(remote):
        try:
            return verify(path, sha256)
        except DownloadError as error:
            refused[path] = error
    try:
        return _from_network(remote, sha256, refused)
    except DownloadError as error:
        raise DownloadError("\n".join(map(str, [*refused.values(), error]))) from error


def verify(path: Path, sha256: str | None) -> Path:
    """``path`` itself, if its content has that SHA-256 or none is asked for.

    Raises:
        DownloadError: it has another, or cannot be read.
    """
    if sha256 is not None:
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error}") from error
        if actual != sha256.lower():
            raise DownloadError(f"{path} has the SHA-256 {actual}, not the pinned {sha256}")
    return path


def hub_sha256(path: Path) -> str | None:
    """What the hub said that the SHA-256 of a file in its cache is; None if it did not, or the file is no such one.

    A snapshot links to a blob that is named by its ETag: of what is in LFS, as weights are, the SHA-256. The blob may
    be a link itself, to a store where names are other hashes.
    """
    blob = Path(os.readlink(path)) if path.is_symlink() else path
    return blob.name if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) else None


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Streams ``url`` to ``path``, unless it is there, and returns ``path``: whole and verified, or not at all.

    Of several processes that want the same file one downloads, the others wait for it.

    Raises:
        DownloadError: the server does not give the file or ends early, ``path`` cannot be written, or what it
            gives, or what is there, is another than ``sha256`` pins.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(path.name + ".lock")):
            return verify(path, sha256) if path.exists() else _place(url, path, sha256)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: {_told(error, path.parent)}") from error


def cached(remote: Remote) -> list[Path]:
    """Where caches have the file, the one to be taken first; the network is not asked."""
    try:
        hub = try_to_load_from_cache(remote.hub_repo, remote.hub_file)
    except OSError:  # a cache that cannot be read has nothing for us
        hub = None
    paths = [Path(hub)] if isinstance(hub, str) else []
    release = _release_path(remote)
    return [*paths, release] if os.path.isfile(release) else paths  # unlike Path.is_file, never raises


def _from_network(remote: Remote, sha256: str | None, refused: Collection[Path]) -> Path:
    if constants.HF_HUB_OFFLINE:
        sources = f"{remote.hub_repo} and {remote.release_url}"
        raise DownloadError(f"no cache has the file, and HF_HUB_OFFLINE forbids to ask {sources}")
    try:
        return _from_hub(remote, sha256, refused)
    except DownloadError as error:
        hub_error = error
    try:
        return _from_release(remote, sha256, refused)
    except DownloadError as error:
        raise DownloadError(f"{hub_error}\n{error}") from hub_error


def _from_hub(remote: Remote, sha256: str | None, refused: Collection[Path]) -> Path:
    try:
        # first alone: of a hub that does not answer, hf_hub_download asks six times more, and waits a minute each time
        get_hf_file_metadata(hf_hub_url(remote.hub_repo, remote.hub_file), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        path = Path(hf_hub_download(remote.hub_repo, remote.hub_file))  # what is cached it does not load again
    except Exception as error:  # what it raises has no common base: OSError, errors of httpx, of hf_xet
        raise DownloadError(f"{remote.hub_repo}: {_told(error, Path(constants.HF_HUB_CACHE))}") from error
    if path in refused:
        raise DownloadError(f"{remote.hub_repo} has no other file than the one refused")
    try:
        return verify(path, sha256)
    except DownloadError as error:
        raise DownloadError(f"{remote.hub_repo}: {error}") from error


def _from_release(remote: Remote, sha256: str | None, refused: Collection[Path]) -> Path:
    path = _release_path(remote)
    if path in refused:
        raise DownloadError(f"{remote.release_url} is not downloaded again: delete {path} if it is damaged")
    return download(remote.release_url, path, sha256)


def _told(error: Exception, folder: Path) -> str:
    """What was wrong, and where, if it was not on the way here."""
    if isinstance(error, OSError) and error.errno in _ABOUT_THE_DISK and not error.filename:
        return f"{error} in {folder}, which has {shutil.disk_usage(folder).free:,} bytes free"
    return str(error)


def _release_path(remote: Remote) -> Path:
    # as cached_assets_path has it, which would make the folder
    folder = Path(constants.HF_ASSETS_CACHE, "volo", "releases", "default")
    return folder / remote.release_url.rpartition("/")[2]


def _place(url: str, path: Path, sha256: str | None) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        _stream(url, part)
        return verify(part, sha256).replace(path)
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, part: Path) -> None:
    """Writes what ``url`` gives to ``part``, down to the disk."""
    with urlopen(url, timeout=_TIMEOUT_S) as response, part.open("wb") as file:
        if response.headers.get_content_type() == "text/html":  # a proxy's, say, that wants a password
            raise OSError("a web page is there, and no weights")
        total = response.length  # None: the server does not say
        with tqdm(total=total, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total not in (None, file.tell()):
            raise OSError(f"the transfer ended after {file.tell()} of {total} bytes")
        file.flush()
        os.fsync(file.fileno())
