"""What a JPEG is made of, as ITU-T T.81 has it in its annex B."""

import re
import struct
from collections.abc import Iterator

from service.errors import TooIntricate

SEGMENTS = 10_000
"""Cameras make some dozens."""
SOS, APP1 = 0xDA, 0xE1
_SOI, _EOI = 0xD8, 0xD9
# In a scan, what follows \xff is 0 or the number of a restart. Of a run of \xff only the last counts: to match all
# of it would take the square of its length.
_SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_AT_ONCE_BYTES = 1 << 20
"""Of a file are searched; in between others have a turn."""


def segments(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """The number of each segment up to the picture's end, and where its length stands.

    Raises:
        TooIntricate: there are more than ``SEGMENTS``.
        struct.error: one is cut short.
    """
    place = 0
    for _ in range(SEGMENTS):
        segment = _search(data, place)
        if segment is None or segment[1][0] == _EOI:
            return
        place = segment.end()
        if segment[1][0] != _SOI:
            yield segment[1][0], place
            (length,) = struct.unpack_from(">H", data, place)
            place += length
    raise TooIntricate(f"The JPEG has more than {SEGMENTS:,} segments.")


def _search(data: bytes | memoryview, place: int) -> re.Match[bytes] | None:
    for begin in range(place, len(data), _AT_ONCE_BYTES):
        if segment := _SEGMENT.search(data, begin, begin + _AT_ONCE_BYTES + 1):
            return segment
    return None


def first_scan(data: bytes | memoryview) -> int:
    """How many components the first scan has; 0 if there is none."""
    return next((data[place + 2] for number, place in segments(data) if number == SOS), 0)
