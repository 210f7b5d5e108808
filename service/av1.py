"""How many pixels an AV1 decoder makes of a payload, told from the headers of its sequences and frames.

As in sections 5.3, 5.5 and 5.9.2 of the AV1 bitstream specification (https://aomediacodec.github.io/av1-spec/).
"""

from collections.abc import Iterator

from service.errors import TooIntricate

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_SELECT = 2
"""Each frame's header says it for itself."""
_HEADER_BYTES = 512
"""More than any sequence header has."""


class Steps:
    """So many that may be taken, boxes and units of a file; then it raises TooIntricate."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooIntricate(f"The AVIF has more than {self._most:,} parts.")


def coded_pixels(payload: memoryview, steps: Steps) -> int:
    """The pixels of all frames, of which hidden ones take a decoder as long as others.

    Raises:
        TooIntricate: a frame has another size than its sequence, or there are too many units.
        IndexError, ValueError: the payload does not make sense.
    """
    pixels, sequence = 0, None
    for kind, content in _units(payload, steps):
        if kind == _SEQUENCE_HEADER:
            sequence = _Sequence(_Bits(content))
        elif kind in (_FRAME_HEADER, _FRAME) and sequence:
            if sequence.changes_size(_Bits(content)):
                raise TooIntricate("A frame of the AVIF has a size of its own.")
            pixels += sequence.width * sequence.height
    return pixels


def _units(payload: memoryview, steps: Steps) -> Iterator[tuple[int, memoryview]]:
    """The open bitstream units (OBU): their kinds and contents."""
    place = 0
    while place < len(payload):
        steps.take()
        head = payload[place]
        place += 2 if head & 4 else 1
        size = max(len(payload) - place, 0)
        if head & 2:
            size, length = _leb128(payload[place : place + 8])
            place += length
        yield head >> 3 & 15, payload[place : place + size]
        place += size


def _leb128(content: memoryview) -> tuple[int, int]:
    """A number of seven bits a byte, and how many bytes it has."""
    number = 0
    for length, byte in enumerate(content, 1):
        number |= (byte & 127) << 7 * (length - 1)
        if byte < 128:
            return number, length
    raise ValueError("a number that does not end")


class _Bits:
    """Unsigned numbers of some bits, one after the other. Behind the last byte there are zeros."""

    def __init__(self, content: memoryview) -> None:
        self._bits = int.from_bytes(content[:_HEADER_BYTES].tobytes().ljust(_HEADER_BYTES, b"\0"), "big")
        self._left = 8 * _HEADER_BYTES

    def take(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("a header that does not end")
        return self._bits >> self._left & (1 << count) - 1

    def skip(self, *counts: int) -> None:
        self._left -= sum(counts)

    def skip_uvlc(self) -> None:
        """Skip a number that has as many bits as there are zeros before it; decoders stop at 32 zeros, and have it."""
        for zeros in range(32):
            if self.take():
                self.skip(zeros)
                return


class _Sequence:
    """What a sequence header says of its frames: their size, and how to read in theirs whether they have another."""

    def __init__(self, bits: _Bits) -> None:
        bits.skip(3, 1)
        self._still = bool(bits.take())  # reduced_still_picture_header: most of what a frame's has is left out
        self._time_bits = 0
        if self._still:
            bits.skip(5)
        else:
            self._read_operating_points(bits)
        width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
        self.width, self.height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
        self._id_bits = bits.take(4) + bits.take(3) + 3 if not self._still and bits.take() else 0
        bits.skip(1, 1, 1)
        self._screen_content = self._whole_motion = _SELECT
        if not self._still:
            self._read_tools(bits)

    def changes_size(self, frame: _Bits) -> bool:
        """Whether a frame with this header has another size."""
        if self._still or frame.take():  # which has no choice; or shows a frame that is there already
            return False
        kind, shown = frame.take(2), frame.take()
        frame.skip(self._time_bits if shown else 1)
        if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
            frame.skip(1)
        frame.skip(1)
        screen_content = frame.take() if self._screen_content == _SELECT else self._screen_content
        if screen_content and self._whole_motion == _SELECT:
            frame.skip(1)
        frame.skip(self._id_bits)
        return kind == _SWITCH_FRAME or bool(frame.take())

    def _read_operating_points(self, bits: _Bits) -> None:
        delay_bits = 0
        if bits.take():  # timing_info
            bits.skip(32, 32)
            if evenly := bits.take():
                bits.skip_uvlc()
            if bits.take():  # decoder_model_info
                delay_bits = bits.take(5) + 1
                bits.skip(32, 5)
                time_bits = bits.take(5) + 1
                self._time_bits = 0 if evenly else time_bits
        display_delays = bits.take()
        for _ in range(bits.take(5) + 1):
            bits.skip(12)
            if bits.take(5) > 7:  # seq_level_idx
                bits.skip(1)
            if delay_bits and bits.take():
                bits.skip(delay_bits, delay_bits, 1)
            if display_delays and bits.take():
                bits.skip(4)

    def _read_tools(self, bits: _Bits) -> None:
        bits.skip(1, 1, 1, 1)
        if bits.take():  # enable_order_hint
            bits.skip(1, 1)
        self._screen_content = _SELECT if bits.take() else bits.take()
        if self._screen_content:
            self._whole_motion = _SELECT if bits.take() else bits.take()
