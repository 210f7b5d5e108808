"""The service's certificate: looked at before it is used, and taken anew when its files change."""

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from service.logs import logger

LOOK_EVERY_S = 2.0


class UnusableCertificate(Exception):
    """The message names the file, and says what is wrong with it."""


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server with this certificate, which speaks TLS 1.2 and later.

    Raises:
        UnusableCertificate: there is none.
    """
    fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _Pair(certificate, key).load(fresh)
    return fresh


async def follow(current: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load it again whenever its files have changed, until cancelled. Connections that are open keep the old one."""
    seen: list[tuple[int, int]] = []  # what the context has may have been read before a change
    while True:
        stamp = await asyncio.to_thread(_stamp, certificate, key)
        if stamp != seen:
            try:
                (await asyncio.to_thread(_Pair, certificate, key)).renew(current)
            except UnusableCertificate as error:
                logger.error("certificate not taken, the one before goes on", reason=str(error))
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE):
                    stamp = []  # the files are not to blame: again at the next look
            else:
                logger.info("certificate taken", file=str(certificate))
        seen = stamp
        await asyncio.sleep(LOOK_EVERY_S)


class _Pair:
    """A certificate and its key, as their files are now. Raises UnusableCertificate where they cannot be read."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        try:
            self._contents = certificate.read_bytes(), key.read_bytes()
        except OSError as error:
            raise UnusableCertificate(f"{error.filename}: {error.strerror}") from error

    def renew(self, current: ssl.SSLContext) -> None:
        """Have the handshakes to come use it. If UnusableCertificate is raised, the context is as it was."""
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # the current one would have half of a bad pair by then
        self.load(current)

    def load(self, into: ssl.SSLContext) -> None:
        """Raise UnusableCertificate if it cannot be used."""
        certificate, key = self._certificate, self._key

        def refuse_passphrase() -> str:  # without this, OpenSSL would ask for one at the terminal
            raise UnusableCertificate(f"{key} is encrypted; give a key without a passphrase")

        try:
            with _in_memory(self._contents[0]) as certificate_there, _in_memory(self._contents[1]) as key_there:
                into.load_cert_chain(certificate_there, key_there, refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise UnusableCertificate(f"{key} is not the key of {certificate}") from error
            raise UnusableCertificate(f"{certificate} and {key} are no certificate and key in PEM") from error
        except OSError as error:
            raise UnusableCertificate(f"{certificate} and {key} cannot be looked at: {error.strerror}") from error


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that only this process has: ``ssl`` takes paths, and the file may change between two looks."""
    with open(os.memfd_create("volo-tls"), "wb", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{file.fileno()}"


def _stamp(*files: Path) -> list[tuple[int, int]]:
    """What changes when files do; of none that is missing."""
    stamps = []
    for file in files:
        with contextlib.suppress(OSError):  # it is just being replaced
            found = file.stat()
            stamps.append((found.st_ino, found.st_mtime_ns))
    return stamps
