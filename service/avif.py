"""Where the frames of an AVIF are, and how many pixels they have. Its boxes tell a size too, which may be a lie.

Boxes are those of ISO/IEC 14496-12; items, which still pictures are, of its section 8.11.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from service.av1 import Steps, coded_pixels
from service.errors import TooIntricate

STEPS = 100_000
"""Boxes, extents and units of a file: a picture has some dozens."""
TABLE_BYTES = 1 << 16
"""Of each of the tables. Decoders look through all items for each that is named, and through stsc for each chunk:
80,000 items in 2 MB take 6 s, in which nothing else goes on."""
_TABLES = (b"iinf", b"iloc", b"iref", b"ipma", b"grpl", b"stsc", b"stco", b"co64")
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""What is made of boxes, and how many bytes stand before these."""


class _Box(NamedTuple):
    kind: bytes
    content: memoryview


def check(data: bytes | memoryview) -> None:
    """Look at the tables of a file that is about to be opened.

    Raises:
        TooIntricate: one is too long, or there are too many boxes.
        ValueError, struct.error: the file does not make sense.
    """
    steps, lengths = Steps(STEPS), Counter[bytes]()
    inside = [_outermost(memoryview(data), steps)]
    while inside:
        for box in inside.pop():
            lengths[box.kind] += len(box.content)
            if box.kind in _TABLES and lengths[box.kind] > TABLE_BYTES:
                raise TooIntricate("A table of the AVIF has too many entries.")
            if box.kind in _CONTAINERS:
                inside.append(_boxes(box.content[_CONTAINERS[box.kind] :], steps))


def decoded_pixels(data: bytes | memoryview) -> int:
    """The pixels of all frames that a decoder makes for the first picture: colour and transparency, every tile.

    Raises:
        TooIntricate: as ``coded_pixels`` does, or there are too many boxes.
        LookupError, ValueError, struct.error: the file does not make sense.
    """
    file, steps = memoryview(data), Steps(STEPS)
    still, moving = 0, 0  # a file may have both; decoders take one of them
    for box in _outermost(file, steps):
        if box.kind == b"meta":
            still += sum(coded_pixels(item, steps) for item in _coded_items(file, box.content[4:], steps))
        elif box.kind == b"moov":
            moving += sum(coded_pixels(sample, steps) for sample in _first_samples(file, box.content, steps))
    return max(still, moving)


def _outermost(file: memoryview, steps: Steps) -> Iterator[_Box]:
    """The boxes of a file, to what is none: no decoder gets past that either, and need not where all came before."""
    with suppress(ValueError, struct.error):
        yield from _boxes(file, steps)


def _boxes(content: memoryview, steps: Steps) -> Iterator[_Box]:
    place = 0
    while place + 8 <= len(content):
        steps.take()
        size, kind = struct.unpack_from(">I4s", content, place)
        begin = place + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, begin)
            begin += 8
        end = place + size if size else len(content)
        if end < begin:
            raise ValueError("a box that ends before it begins")
        yield _Box(kind, content[begin:end])
        place = end


def _coded_items(file: memoryview, meta: memoryview, steps: Steps) -> Iterator[memoryview]:
    """The bytes of each item that is coded as AV1."""
    boxes = {box.kind: box.content for box in _boxes(meta, steps)}
    coded = set(_of_av1(boxes[b"iinf"], steps))
    fields = _Fields(boxes[b"iloc"])
    version = fields.take(4) >> 24
    sizes = fields.take(2)
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    used = 0
    for _ in range(fields.take(4 if version == 2 else 2)):
        steps.take()
        item = fields.take(4 if version == 2 else 2)
        method = fields.take(2) & 15 if version else 0
        fields.take(2)
        base = fields.take(base_bytes)
        source = boxes[b"idat"] if method == 1 else file
        extents = []
        for _ in range(fields.take(2)):
            steps.take()
            fields.take(index_bytes if version else 0)
            begin, length = base + fields.take(offset_bytes), fields.take(length_bytes)
            extents.append(source[begin : begin + length if length else None])
        if item in coded:
            used += sum(map(len, extents))
            if used > len(file):  # each is put together, and twenty thousand of 20 MB would be
                raise TooIntricate("The AVIF uses its bytes more than once.")
            yield extents[0] if len(extents) == 1 else memoryview(b"".join(extents))


def _of_av1(iinf: memoryview, steps: Steps) -> Iterator[int]:
    """The numbers of the items that are coded as AV1."""
    for box in _boxes(iinf[8 if iinf[0] else 6 :], steps):
        fields = _Fields(box.content)
        number = fields.take(4 if fields.take(4) >> 24 > 2 else 2)
        fields.take(2)
        if fields.take(4).to_bytes(4, "big") == b"av01":
            yield number


def _first_samples(file: memoryview, moov: memoryview, steps: Steps) -> Iterator[memoryview]:
    """The first sample of each track."""
    for track in _boxes(moov, steps):
        if track.kind != b"trak":
            continue
        content = track.content
        for kind in (b"mdia", b"minf", b"stbl"):
            content = {box.kind: box.content for box in _boxes(content, steps)}[kind]
        table = {box.kind: box.content for box in _boxes(content, steps)}
        offset, offsets = (">Q", table[b"co64"]) if b"co64" in table else (">I", table[b"stco"])
        (begin,) = struct.unpack_from(offset, offsets, 8)
        size, samples = struct.unpack_from(">II", table[b"stsz"], 4)
        if not size and samples:
            (size,) = struct.unpack_from(">I", table[b"stsz"], 12)
        yield file[begin : begin + size]


class _Fields:
    """Unsigned numbers of whole bytes, one after the other."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._place = 0

    def take(self, size: int) -> int:
        begin, self._place = self._place, self._place + size
        if self._place > len(self._content):
            raise ValueError("a box that is cut short")
        return int.from_bytes(self._content[begin : self._place], "big")
