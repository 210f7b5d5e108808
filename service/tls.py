"""The service's certificate: looked at before it is used, and taken anew when its files change."""

import asyncio
import contextlib
import ssl
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
    _load(fresh, certificate, key)
    return fresh


def renew(current: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have the handshakes to come use this certificate.

    Raises:
        UnusableCertificate: it is none, or the key is another's. The context is then as it was.
    """
    context(certificate, key)  # the current one would have the new certificate by then, and the old key
    _load(current, certificate, key)


async def follow(current: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load it again whenever its files have changed, until cancelled. Connections that are open keep the old one."""
    seen: list[tuple[int, int]] = []  # what the context has may have been read before a change
    while True:
        stamp = _stamp(certificate, key)
        if stamp != seen:
            try:
                renew(current, certificate, key)
            except UnusableCertificate as error:
                logger.error("certificate not taken, the one before goes on", reason=str(error))
            else:
                logger.info("certificate taken", file=str(certificate))
        seen = stamp
        await asyncio.sleep(LOOK_EVERY_S)


def _load(into: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def refuse_passphrase() -> str:  # without this, OpenSSL would ask for one at the terminal
        raise UnusableCertificate(f"{key} is encrypted; give a key without a passphrase")

    try:
        for file in (certificate, key):
            file.open("rb").close()  # ssl does not say which of them it cannot read
        into.load_cert_chain(certificate, key, refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UnusableCertificate(f"{key} is not the key of {certificate}") from error
        raise UnusableCertificate(f"{certificate} and {key} are no certificate and key in PEM") from error
    except OSError as error:
        raise UnusableCertificate(f"{error.filename}: {error.strerror}") from error


def _stamp(*files: Path) -> list[tuple[int, int]]:
    """What changes when files do; of none that is missing."""
    stamps = []
    for file in files:
        with contextlib.suppress(OSError):  # it is just being replaced
            found = file.stat()
            stamps.append((found.st_ino, found.st_mtime_ns))
    return stamps
