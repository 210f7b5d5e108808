"""Pictures are read as people mean them, and no bytes whatever do harm."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import crop
from service.errors import EmptyBody, NotAnImage, ServiceError, TooManyPixels, TruncatedImage
from service.images import decode, decode_reduced

# pytest's own filters take the place of the one that `service.images` sets for the process
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MAX_PIXELS = 1_000_000
ORIENTATION = 0x0112
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of the decoded picture."""
    image = decode(data, MAX_PIXELS)
    assert image.mode == "RGB"
    return np.asarray(image)


def red_and_blue() -> Image.Image:
    """64 x 32, red on the left and blue on the right."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    return image


def animated(format: str) -> bytes:
    return encoded(red_and_blue(), format, save_all=True, append_images=[Image.new("RGB", (64, 32))])


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


FILES: dict[str, bytes] = {
    "jpeg": encoded(red_and_blue(), "JPEG", subsampling=0),
    "progressive jpeg": encoded(red_and_blue(), "JPEG", progressive=True, subsampling=0),
    "cmyk jpeg": encoded(red_and_blue().convert("CMYK"), "JPEG"),
    "mpo": animated("MPO"),
    "png": encoded(red_and_blue(), "PNG"),
    "palette png": encoded(red_and_blue().quantize(4), "PNG"),
    "apng": animated("PNG"),
    "webp": encoded(red_and_blue(), "WEBP", quality=95),
    "lossless webp": encoded(red_and_blue(), "WEBP", lossless=True),
    "animated webp": animated("WEBP"),
    "gif": encoded(red_and_blue(), "GIF"),
    "animated gif": animated("GIF"),
    "bmp": encoded(red_and_blue(), "BMP"),
    "palette bmp": encoded(red_and_blue().quantize(4), "BMP"),
    "tiff": encoded(red_and_blue(), "TIFF"),
    "lzw tiff": encoded(red_and_blue(), "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(red_and_blue().convert("CMYK"), "TIFF"),
    "avif": encoded(red_and_blue(), "AVIF", quality=90, subsampling="4:4:4"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_first_picture_of_every_format_is_read(name: str) -> None:
    read = pixels(FILES[name]).astype(int)
    assert read.shape == (32, 64, 3)
    assert np.abs(read[16, 8] - RED).max() < 40
    assert np.abs(read[16, 56] - BLUE).max() < 40


def test_a_view_of_bytes_is_read_like_bytes() -> None:
    assert decode(memoryview(FILES["png"]), MAX_PIXELS).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("at_least", "size"), [(33, (64, 32)), (17, (64, 32)), (16, (32, 16)), (5, (16, 8)), (1, (8, 4))]
)
@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "cmyk jpeg", "mpo"])
def test_a_jpeg_is_read_at_the_smallest_scale_that_leaves_enough(
    name: str, at_least: int, size: tuple[int, int]
) -> None:
    image, extent, whole_size, _ = decode_reduced(FILES[name], MAX_PIXELS, at_least)
    assert extent == (0, 0, *size)
    assert whole_size == (64, 32)
    assert (image.mode, image.size) == ("RGB", size)
    read = np.asarray(image.resize((64, 32), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(read[16, 8] - RED).max() < 40
    assert np.abs(read[16, 56] - BLUE).max() < 40


@pytest.mark.parametrize("name", [name for name in FILES if "jpeg" not in name and name != "mpo"])
def test_other_formats_are_read_as_they_are(name: str) -> None:
    image, extent, size, _ = decode_reduced(FILES[name], MAX_PIXELS, at_least=4)
    assert (image.size, extent, size) == ((64, 32), (0, 0, 64, 32), (64, 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_lies_in_its_image_where_the_whole_one_would(orientation: int) -> None:
    odd = Image.linear_gradient("L").resize((61, 43)).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(odd, "JPEG", exif=exif, quality=100)
    image, extent, size, _ = decode_reduced(data, MAX_PIXELS, at_least=20)
    whole = decode(data, MAX_PIXELS)
    assert size == whole.size
    assert image.size == ((31, 22) if orientation < 5 else (22, 31))
    assert (extent[2] - extent[0], extent[3] - extent[1]) == (whole.width / 2, whole.height / 2)
    fast, exact = crop(image, 10, 1.0, within=extent), crop(whole, 10, 1.0)
    assert np.abs(fast.astype(int) - exact).max() <= 2


def test_what_counts_for_the_limit_is_the_picture_as_it_was_sent() -> None:
    with pytest.raises(TooManyPixels):
        decode_reduced(FILES["jpeg"], 64 * 32 - 1, at_least=1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    ("orientation", "red_at", "blue_at"),
    [
        (1, (16, 8), (16, 56)),
        (2, (16, 56), (16, 8)),
        (3, (16, 56), (16, 8)),
        (4, (16, 8), (16, 56)),
        (5, (8, 16), (56, 16)),
        (6, (8, 16), (56, 16)),
        (7, (56, 16), (8, 16)),
        (8, (56, 16), (8, 16)),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(
    format: str, orientation: int, red_at: tuple[int, int], blue_at: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    read = pixels(encoded(red_and_blue(), format, exif=exif)).astype(int)
    assert np.abs(read[red_at] - RED).max() < 40
    assert np.abs(read[blue_at] - BLUE).max() < 40


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\xff\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
def test_broken_exif_does_not_spoil_a_picture(exif: bytes) -> None:
    assert pixels(encoded(red_and_blue(), "JPEG", exif=exif)).shape == (32, 64, 3)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_half_transparent_red_lies_on_white(format: str) -> None:
    read = pixels(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), format)).astype(int)
    assert np.abs(read - (255, 127, 127)).max() < 6


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_transparent_grey_and_palette_pictures_are_white(mode: str) -> None:
    assert (pixels(encoded(Image.new(mode, (4, 4), (0, 0)), "TIFF")) == 255).all()


@pytest.mark.parametrize(("format", "transparency"), [("PNG", 0), ("PNG", b"\0\xff"), ("GIF", 0)])
def test_a_transparent_colour_of_a_palette_is_white(format: str, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, format, transparency=transparency)).tolist() == [[[*WHITE], [*BLUE]]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 8, 2, b"\0" + bytes([*RED, *BLUE]), (b"tRNS", b"\0\xff\0\0\0\0")), [WHITE, BLUE]),
        (png(2, 1, 8, 0, b"\0\x0a\x14", (b"tRNS", b"\0\x0a")), [WHITE, (20, 20, 20)]),
        (png(2, 1, 16, 0, b"\0\x03\xe8\x03\xe9", (b"tRNS", b"\x03\xe8")), [WHITE, (3, 3, 3)]),
        (png(2, 1, 16, 6, b"\0" + bytes(8) + b"\xff\xff\0\0\0\0\xff\xff"), [WHITE, RED]),
    ],
    ids=["rgb", "grey", "16-bit grey", "16-bit rgba"],
)
def test_a_transparent_colour_of_a_png_is_white(data: bytes, expected: list[tuple[int, ...]]) -> None:
    assert pixels(data).tolist() == [[[*colour] for colour in expected]]


@pytest.mark.parametrize(("adobe_transform", "expected"), [(0, (200, 128, 128)), (2, (55, 55, 55))])
def test_adobe_cmyk_and_ycck_are_not_inverted(adobe_transform: int, expected: tuple[int, int, int]) -> None:
    # Stored inverted, as Adobe does: 200, 128, 128, 255. Read as YCCK it is a grey: Y is the ink, without colour.
    data = encoded(Image.new("CMYK", (16, 16), (55, 127, 127, 0)), "JPEG", quality=100)
    at = data.index(b"Adobe") + 11
    data = data[:at] + bytes([adobe_transform]) + data[at + 1 :]
    assert np.abs(pixels(data).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8_bits(format: str, byte_order: str) -> None:
    ramp = np.arange(0, 65536, 257).astype(f"{byte_order}u2")
    mode = "I;16" if byte_order == "<" else "I;16B"
    read = pixels(encoded(Image.frombytes(mode, (256, 1), ramp.tobytes()), format))
    assert (read[0] == np.arange(256)[:, None]).all()


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_grey_is_scaled_by_the_white_that_its_values_suggest(white: float) -> None:
    image = Image.fromarray(np.array([[0, 0.5, 1]], np.float32) * white)
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("white", [255, 65535])
def test_32_bit_grey_is_scaled_by_the_white_that_its_values_suggest(white: int) -> None:
    image = Image.fromarray(np.array([[0, white]], np.int32))
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 255]


def test_negative_infinite_and_missing_samples_are_no_trouble() -> None:
    image = Image.fromarray(np.array([[-1e29, np.nan, np.inf, -3e38, 1e29]], np.float32))
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 128, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_bilevel_grey_and_palette_pictures_become_rgb(mode: str) -> None:
    image = Image.new("L", (2, 1))
    image.putpixel((1, 0), 255)
    assert pixels(encoded(image.convert(mode), "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_no_bytes_are_an_empty_body() -> None:
    with pytest.raises(EmptyBody):
        decode(b"", MAX_PIXELS)


@pytest.mark.parametrize("data", [b"hello", b"<svg></svg>", b"BMW is no bitmap", b"\0" * 100, b"%PDF-1.7"])
def test_what_is_no_picture_is_refused_with_the_list_of_formats(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"):
        decode(data, MAX_PIXELS)


def test_formats_that_are_not_on_the_list_are_not_even_tried() -> None:
    with pytest.raises(NotAnImage):
        decode(encoded(red_and_blue(), "ICO"), MAX_PIXELS)


@pytest.mark.parametrize("part", [0.4, 0.7])
@pytest.mark.parametrize("name", [name for name in FILES if name not in ("mpo", "apng", "animated gif")])
def test_a_picture_cut_short_is_called_so(name: str, part: float) -> None:
    data = FILES[name]
    with pytest.raises(TruncatedImage):
        decode(data[: int(len(data) * part)], MAX_PIXELS)


@pytest.mark.parametrize("brand", [b"avif", b"avis", b"mif1", b"msf1"])
def test_what_begins_as_an_avif_of_any_brand_is_called_damaged(brand: bytes) -> None:
    with pytest.raises(TruncatedImage):
        decode(b"\0\0\0\x1cftyp" + brand + bytes(16), MAX_PIXELS)


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    header_only = png(100_000, 100_000, 8, 2, b"")
    with pytest.raises(TooManyPixels, match="100000 x 100000"):
        decode(header_only, 50_000_000)


def test_a_side_no_camera_makes_is_refused_by_the_header_alone() -> None:
    with pytest.raises(TooManyPixels, match="at most 65,535 on a side"):
        decode(png(1, 65_536, 8, 2, b""), 50_000_000)


def test_as_many_pixels_as_are_allowed_are_allowed() -> None:
    data = FILES["png"]
    assert decode(data, 64 * 32).size == (64, 32)
    with pytest.raises(TooManyPixels):
        decode(data, 64 * 32 - 1)


def test_a_limit_above_that_of_pillow_holds() -> None:
    with pytest.raises(TooManyPixels):
        decode(png(20_000, 10_000, 8, 2, b""), 199_999_999)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed, added, dropped or cut off."""
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(len(data) // 2, len(data)))])


@settings(max_examples=1_000, deadline=None)
@given(damaged_files() | st.binary(max_size=64), st.sampled_from([None, 8]))
def test_damaged_files_are_read_or_refused_and_nothing_else(data: bytes, at_least: int | None) -> None:
    try:
        image = decode(data, MAX_PIXELS) if at_least is None else decode_reduced(data, MAX_PIXELS, at_least).image
    except ServiceError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS


def test_libraries_write_nothing_between_the_lines_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    damaged = encoded(red_and_blue(), "TIFF", compression="jpeg").replace(b"\xff\xdb", b"\xff\xfe")
    with pytest.raises(TruncatedImage):
        decode(damaged, MAX_PIXELS)
    assert capfd.readouterr().err == ""
