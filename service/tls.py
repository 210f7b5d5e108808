"""The service's certificate: looked at before it is used, and taken anew when its files change."""

import asyncio
import contextlib
import ssl
from pathlib import Path

from service.logs import logger

LOOK_EVERY_S = 5.0


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have the handshakes to come use it.

    Raises:
        OSError, ssl.SSLError: it cannot be read, or the key is another's. The context is then as it was.
    """
    # the context itself would have the new certificate by then, and the old key
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    context.load_cert_chain(certificate, key)


async def follow(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load it again whenever its files have changed, until cancelled. Connections that are open keep the old one."""
    seen: list[tuple[int, int]] = []  # what the context has may have been read before a change
    while True:
        stamp = _stamp(certificate, key)
        if stamp != seen:
            try:
                load(context, certificate, key)
            except OSError as error:  # of which ssl's are
                logger.error("certificate not taken, the one before goes on", file=str(certificate), reason=str(error))
            else:
                logger.info("certificate taken", file=str(certificate))
        seen = stamp
        await asyncio.sleep(LOOK_EVERY_S)


def _stamp(*files: Path) -> list[tuple[int, int]]:
    """What changes when files do; of none that is missing."""
    stamps = []
    for file in files:
        with contextlib.suppress(OSError):  # it is just being replaced
            found = file.stat()
            stamps.append((found.st_ino, found.st_mtime_ns))
    return stamps
