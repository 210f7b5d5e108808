"""Files that would keep a decoder busy far longer than their pixels do, and such as only look so."""

import pytest
from bombs import DAMAGED, INTRICATE, READ, jpeg_of_scans

from service.errors import TooIntricate, TruncatedImage
from service.images import decode
from service.intricacy import SCANS

MAX_PIXELS = 50_000_000


@pytest.mark.parametrize("name", INTRICATE)
def test_what_would_keep_a_decoder_busy_is_refused(name: str) -> None:
    with pytest.raises(TooIntricate):
        decode(INTRICATE[name](), MAX_PIXELS)


@pytest.mark.parametrize("name", READ)
def test_what_is_only_long_or_odd_is_read(name: str) -> None:
    assert decode(READ[name](), MAX_PIXELS).mode == "RGB"


@pytest.mark.parametrize("name", DAMAGED)
def test_what_promises_more_than_it_holds_is_called_damaged(name: str) -> None:
    with pytest.raises(TruncatedImage):
        decode(DAMAGED[name](), MAX_PIXELS)


def test_as_many_scans_as_are_allowed_are_allowed() -> None:
    given = jpeg_of_scans(0).count(b"\xff\xda")
    assert decode(jpeg_of_scans(SCANS - given), MAX_PIXELS).size == (64, 64)
    with pytest.raises(TooIntricate):
        decode(jpeg_of_scans(SCANS - given + 1), MAX_PIXELS)
