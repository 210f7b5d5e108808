"""Files that would keep a decoder busy far longer than their pixels do: millions of scans, chunks, runs, strips, items.

What is looked for is what decoders were seen to take seconds to hours for, at a few megabytes; no camera and no program
makes it. All is counted, not timed, so that a file is refused always or never.
"""

import struct
from io import BytesIO

from service import avif, jpeg
from service.errors import TooIntricate

READS = 500_000
"""Of Pillow's parsers in Python, which read a file chunk by chunk, or run by run: up to four microseconds each."""
SCANS = 32
"""Of a JPEG: each goes over all of its pixels. Encoders make ten or so."""
EXIF_BYTES = 1_000_000
"""Of a JPEG; a segment holds 65,533, and cameras fill one."""
VALUES = 65_536
"""Of one tag of a TIFF, as numbers. There may be as many rows, and each may be a strip: 24 microseconds."""

_EXIF = b"Exif\0\0"
_AVIF = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1")  # what Pillow gives libavif
_KEPT_AS_BYTES = (1, 2, 7)  # TIFF's BYTE, ASCII and UNDEFINED


class Reader(BytesIO):
    """A file in memory that is not read a million times; then it raises TooIntricate."""

    def __init__(self, data: bytes | memoryview) -> None:
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > READS:
            raise TooIntricate(f"The file has more than {READS:,} pieces.")
        return super().read(size)


def check(data: bytes | memoryview) -> None:
    """Look at a file that is about to be opened.

    Raises:
        TooIntricate: it is.
        ValueError, struct.error: it is an AVIF that does not make sense.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            _check_jpeg(data)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            _check_tiff(data, "<" if data[:1] == b"I" else ">", at=4, offset="I", length="H", entry="HHI4x")
        elif data[:4] in (b"II+\0", b"MM\0+"):
            _check_tiff(data, "<" if data[:1] == b"I" else ">", at=8, offset="Q", length="Q", entry="HHQ8x")
    except struct.error:
        pass  # cut short: whoever reads it will say so
    if data[4:12] in _AVIF:
        avif.check(data)  # what cannot be followed to its end is not opened, for the rest may be long


def _check_jpeg(data: bytes | memoryview) -> None:
    scans, exif = 0, 0
    for number, place in jpeg.segments(data):
        scans += number == jpeg.SOS
        if number == jpeg.APP1 and data[place + 2 : place + 8] == _EXIF:
            exif += struct.unpack_from(">H", data, place)[0]
        if scans > SCANS:
            raise TooIntricate(f"The JPEG has more than {SCANS} scans.")
        if exif > EXIF_BYTES:
            raise TooIntricate(f"The JPEG has more than {EXIF_BYTES:,} bytes of EXIF.")


def _check_tiff(data: bytes | memoryview, order: str, at: int, offset: str, length: str, entry: str) -> None:
    """The first directory of a TIFF, with the formats of what it is made of."""
    (place,) = struct.unpack_from(order + offset, data, at)
    (entries,) = struct.unpack_from(order + length, data, place)
    place += struct.calcsize(order + length)
    for number in range(min(entries, VALUES)):
        _, kind, values = struct.unpack_from(order + entry, data, place + number * struct.calcsize(order + entry))
        if values > VALUES and kind not in _KEPT_AS_BYTES:
            raise TooIntricate(f"A tag of the TIFF has more than {VALUES:,} values.")
