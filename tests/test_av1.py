"""What the headers of an AV1 stream say, in streams made bit by bit and in those of an encoder."""

import io
import struct

import pytest
from PIL import Image

from service.av1 import Steps, coded_pixels
from service.avif import decoded_pixels
from service.errors import TooIntricate

SEQUENCE, TEMPORAL_DELIMITER, FRAME_HEADER, FRAME = 1, 2, 3, 6
KEY, INTER, SWITCH = 0, 1, 3


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits: (number, bits)."""
    text = "".join(f"{number:0{size}b}" for number, size in fields if size)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def unit(kind: int, content: bytes, *, extended: bool = False) -> bytes:
    head = bytes([kind << 3 | extended << 2 | 2]) + b"\0" * extended
    return head + bytes([len(content) & 127 | 128, len(content) >> 7]) + content


def sequence(
    width: int = 64, height: int = 48, *, timed: bool = False, ids: bool = False, chosen: bool = True, zeros: int = 0
) -> bytes:
    """The header of a sequence that is no still picture, with as much in it as may be, or as little, or with so many
    zeros in a number."""
    timing = [(1, 1), (1, 32), (1, 32), (0, 1), (1, 1), (9, 5), (1, 32), (3, 5), (6, 5)] if timed else [(0, 1)]
    if zeros:
        timing = [(1, 1), (1, 32), (1, 32), (1, 1), (0, zeros), (0, 1)]
    point = [(0, 12), (9, 5), (1, 1), *([(1, 1), (1, 10), (1, 10), (1, 1)] if timed else []), (1, 1), (5, 4)]
    return unit(
        SEQUENCE,
        bits(
            (0, 3),
            (0, 1),
            (0, 1),
            *timing,
            (1, 1),  # display delays
            (1, 5),  # two operating points
            *point,
            *point,
            (15, 4),
            (15, 4),
            (width - 1, 16),
            (height - 1, 16),
            *([(1, 1), (2, 4), (1, 3)] if ids else [(0, 1)]),
            (7, 3),
            (15, 4),
            (1, 1),  # order hints
            (3, 2),
            *([(1, 1), (1, 1)] if chosen else [(0, 1), (0, 1)]),
            (3, 3),
        ),
    )


def frame(
    kind: int = KEY,
    *,
    other_size: bool = False,
    shown: bool = True,
    timed: bool = False,
    ids: bool = False,
    chosen: bool = True,
) -> bytes:
    """The beginning of a frame of that sequence."""
    return bits(
        (0, 1),
        (kind, 2),
        (shown, 1),
        *([(127, 7)] if timed and shown else []),
        *([] if shown else [(1, 1)]),
        *([] if kind == SWITCH or (kind == KEY and shown) else [(1, 1)]),
        (1, 1),
        *([(1, 1), (1, 1)] if chosen else []),
        *([(63, 6)] if ids else []),
        *([] if kind == SWITCH else [(other_size, 1)]),
        (0, 64),
    )


VARIETIES = [
    {"timed": timed, "ids": ids, "chosen": chosen}
    for timed in (False, True)
    for ids in (False, True)
    for chosen in (False, True)
]


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("kind", [KEY, INTER])
def test_each_frame_counts_and_none_may_have_a_size_of_its_own(
    kind: int, shown: bool, variety: dict[str, bool]
) -> None:
    same, other = (frame(kind, shown=shown, other_size=other, **variety) for other in (False, True))
    stream = unit(TEMPORAL_DELIMITER, b"") + sequence(**variety)
    many = stream + unit(FRAME, same) + unit(FRAME_HEADER, same, extended=True)
    assert coded_pixels(memoryview(many), Steps(10)) == 2 * 64 * 48
    with pytest.raises(TooIntricate, match="size of its own"):
        coded_pixels(memoryview(stream + unit(FRAME, other)), Steps(10))


def test_a_switch_frame_has_a_size_of_its_own() -> None:
    with pytest.raises(TooIntricate, match="size of its own"):
        coded_pixels(memoryview(sequence() + unit(FRAME, frame(SWITCH))), Steps(10))


def test_a_frame_that_is_shown_again_says_nothing_of_its_size() -> None:
    again = unit(FRAME_HEADER, bits((1, 1), (0, 3)))
    assert coded_pixels(memoryview(sequence() + unit(FRAME, frame()) + again), Steps(10)) == 2 * 64 * 48


def test_a_number_ends_after_32_zeros() -> None:
    assert coded_pixels(memoryview(sequence(zeros=32) + unit(FRAME, frame())), Steps(10)) == 64 * 48


def test_a_million_units_are_too_many() -> None:
    with pytest.raises(TooIntricate, match="more than 100 parts"):
        coded_pixels(memoryview(unit(TEMPORAL_DELIMITER, b"") * 1_000_000), Steps(100))


@pytest.mark.parametrize("stream", [b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_what_makes_no_sense_is_an_error(stream: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        coded_pixels(memoryview(stream), Steps(10))


def avif(mode: str, frames: int = 1, size: tuple[int, int] = (60, 40)) -> bytes:
    first, *others = (Image.effect_noise(size, 20 + number).convert(mode) for number in range(frames))
    if mode == "RGBA":  # an opaque one would be coded without
        for image in (first, *others):
            image.putalpha(100)
    file = io.BytesIO()
    first.save(file, "AVIF", save_all=frames > 1, append_images=others, speed=10)
    return file.getvalue()


@pytest.mark.parametrize(("mode", "times"), [("RGB", 1), ("L", 1), ("RGBA", 2)])
@pytest.mark.parametrize("frames", [1, 3])
def test_what_an_encoder_makes_is_counted_once_and_its_transparency_too(mode: str, frames: int, times: int) -> None:
    assert decoded_pixels(avif(mode, frames)) == times * 60 * 40


def test_an_encoders_frames_are_found_to_the_last() -> None:
    film = avif("RGB", 5)
    begin = film.index(b"mdat")
    (size,) = struct.unpack_from(">I", film, begin - 4)
    assert coded_pixels(memoryview(film)[begin + 4 : begin - 4 + size], Steps(100)) == 5 * 60 * 40


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def avif_of_items(items: int, extent: int) -> bytes:
    """Items of two extents each, which lie on the same bytes."""
    named = b"".join(box(b"infe", struct.pack(">IHH4s", 2 << 24, item, 0, b"av01")) for item in range(items))
    where = b"".join(struct.pack(">HHHIIII", item, 0, 2, 0, extent, 0, extent) for item in range(items))
    names = box(b"iinf", struct.pack(">IH", 0, items) + named)
    return box(b"meta", bytes(4) + names + box(b"iloc", struct.pack(">IHH", 0, 0x4400, items) + where))


def test_items_that_lie_on_the_same_bytes_are_not_put_together_again_and_again() -> None:
    once = avif_of_items(3, 1)
    assert decoded_pixels(once) == 0
    with pytest.raises(TooIntricate, match="more than once"):
        decoded_pixels(avif_of_items(3, len(once) // 5))
