"""Files that would keep a decoder busy far longer than their pixels do, and such as only look so."""

import time

import pytest
from bombs import (
    DAMAGED,
    INTRICATE,
    LARGER,
    ONE_COLOUR,
    READ,
    avif_in_a_box,
    avif_of_chunks,
    avif_of_items,
    encoded,
    gif_of_another_screen,
    grey,
    jpeg_of_scans,
    tiff_of_tiles,
)

from service import intricacy
from service.avif import decoded_pixels
from service.errors import NotAnImage, TooIntricate, TooManyPixels, TruncatedImage
from service.images import Opened, decode
from service.intricacy import SCANS

MAX_PIXELS = 50_000_000


@pytest.mark.parametrize("name", INTRICATE)
def test_what_would_keep_a_decoder_busy_is_refused(name: str) -> None:
    with pytest.raises(TooIntricate):
        decode(INTRICATE[name](), MAX_PIXELS)


@pytest.mark.parametrize("name", READ)
def test_what_is_only_long_or_odd_is_read(name: str) -> None:
    assert decode(READ[name](), MAX_PIXELS).mode == "RGB"


@pytest.mark.parametrize("name", ONE_COLOUR)
def test_a_large_picture_of_one_colour_is_read_or_refused_by_its_header(name: str) -> None:
    data = ONE_COLOUR[name]((3000, 2000))
    assert len(data) < 200_000
    with pytest.raises(TooManyPixels, match="3000 x 2000"):
        decode(data, 5_999_999)
    assert decode(data, 6_000_000).size == (3000, 2000)


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused_by_the_frame() -> None:
    with pytest.raises(TooManyPixels, match="3000 x 2000"):
        decode(gif_of_another_screen((3000, 2000), (8, 8)), 5_999_999)


@pytest.mark.parametrize("name", LARGER)
def test_what_is_decoded_to_far_more_than_is_shown_is_refused(name: str) -> None:
    with pytest.raises(TooManyPixels, match="larger than itself"):
        decode(LARGER[name](), MAX_PIXELS)


def test_an_avif_whose_frame_is_larger_than_its_box_is_refused_by_the_frame() -> None:
    with pytest.raises(TooManyPixels, match="larger than itself"):
        decode(avif_in_a_box((2000, 1000), (64, 64)), 500_000)


@pytest.mark.parametrize(
    ("data", "bytes_a_pixel"),
    [(tiff_of_tiles((100, 100), (4000, 2000)), 8), (avif_in_a_box((4000, 2000), (100, 100)), 6)],
    ids=["TIFF", "AVIF"],
)
def test_what_is_decoded_to_more_than_is_shown_tells_its_memory(data: bytes, bytes_a_pixel: int) -> None:
    opened = Opened(data, MAX_PIXELS, None)
    assert opened.need_bytes > 4000 * 2000 * bytes_a_pixel
    assert opened.read().size == (100, 100)


@pytest.mark.parametrize("name", DAMAGED)
def test_what_promises_more_than_it_holds_is_called_damaged(name: str) -> None:
    with pytest.raises(TruncatedImage):
        decode(DAMAGED[name](), MAX_PIXELS)


@pytest.mark.parametrize("end", [b"\0\0\0\1free", b"\0\0\0\7free"])
def test_an_avif_of_many_items_is_not_opened_whatever_stands_at_its_end(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr("service.images.Image.open", lambda *_, **__: pytest.fail("it was"))
    with pytest.raises(TooIntricate):
        decode(avif_of_items(10_000) + end, MAX_PIXELS)


@pytest.mark.parametrize(
    "end",
    [b"\0\0\0\5junk", b"\0\0\0\2\0\0\0\0", b"\0\0\0\1junkjunk", b"\0\0\0\1junk" + b"\0" * 7 + b"\x0f"],
    ids=["too short", "almost zeros", "of a size cut short", "of a large size that is too short"],
)
def test_an_avif_is_read_although_what_follows_it_is_no_box(end: bytes) -> None:
    data = encoded(grey(), "AVIF")
    assert decode(data + end, MAX_PIXELS).tobytes() == decode(data, MAX_PIXELS).tobytes()
    assert decoded_pixels(data + end) == decoded_pixels(data) > 0


def test_a_box_in_an_avif_that_is_none_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder may go on elsewhere, and nobody has counted what is there."""
    monkeypatch.setattr("service.images.Image.open", lambda *_, **__: pytest.fail("it was"))
    data = encoded(grey(), "AVIF")
    size = data.index(b"iinf") - 4
    with pytest.raises(TruncatedImage):
        decode(data[:size] + b"\0\0\0\5" + data[size + 4 :], MAX_PIXELS)


def test_a_film_is_no_picture_however_long() -> None:
    with pytest.raises(NotAnImage):
        decode(avif_of_chunks(10_000).replace(b"ftypavis", b"ftypisom"), MAX_PIXELS)


def test_as_many_scans_as_are_allowed_are_allowed() -> None:
    given = jpeg_of_scans(0).count(b"\xff\xda")
    assert decode(jpeg_of_scans(SCANS - given), MAX_PIXELS).size == (64, 64)
    with pytest.raises(TooIntricate):
        decode(jpeg_of_scans(SCANS - given + 1), MAX_PIXELS)


def test_padding_between_segments_is_looked_at_once() -> None:
    started_s = time.thread_time()
    intricacy.check(b"\xff\xd8" + b"\xff" * 20_000_000)
    assert time.thread_time() - started_s < 5  # looked at from each byte on, 20,000 of them took 1.5 s


@pytest.mark.parametrize("padding", [9, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_segment_behind_padding_is_found(padding: int) -> None:
    jpeg = jpeg_of_scans(SCANS)
    assert jpeg[2:4] == b"\xff\xe0"
    with pytest.raises(TooIntricate):
        intricacy.check(jpeg[:2] + b"\xff" * padding + jpeg[2:])
