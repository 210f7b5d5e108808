"""Files made to keep a decoder busy, or to have it take memory; and such as only look so."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

Size = tuple[int, int]


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def grey(size: Size = (64, 64)) -> Image.Image:
    return Image.new("L", size, 100)


# JPEG


def jpeg_of_scans(count: int, size: Size = (64, 64)) -> bytes:
    """A progressive one whose last scan comes so many times more."""
    data = encoded(grey(size), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[data.rindex(b"\xff\xda") : end] * count + data[end:]


def jpeg_in_scans(image: Image.Image) -> bytes:
    """A baseline one whose components come one after the other, which no encoder of Pillow's makes."""
    bands = [encoded(band, "JPEG") for band in image.split()]
    frame, scan = bands[0].index(b"\xff\xc0"), bands[0].index(b"\xff\xda")
    head = b"\xff\xc0" + struct.pack(">HBHHB", 8 + 3 * len(bands), 8, image.height, image.width, len(bands))
    components = b"".join(bytes([number, 0x11, 0]) for number in range(len(bands)))
    scans = b"".join(b"\xff\xda\0\x08\x01" + bytes([number]) + band[scan + 6 : -2] for number, band in enumerate(bands))
    return bands[0][:frame] + head + components + bands[0][frame + 13 : scan] + scans + b"\xff\xd9"


def jpeg_with(segment: bytes, count: int) -> bytes:
    """One with so many APP1 segments."""
    data = encoded(grey(), "JPEG")
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment) * count + data[2:]


def motion_photo() -> bytes:
    """Telephones put a film behind the picture, in which anything may look like the begin of a scan."""
    return encoded(grey(), "JPEG", progressive=True) + b"\xff\xda\x00\x08" * 100_000


# PNG


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: Size = (8, 8), before: bytes = b"", pixels: Iterable[bytes] = (), after: bytes = b"", colours: int = 0
) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colours, 0, 0, 0))
    rows = list(pixels) or [zlib.compress((b"\0" + bytes(size[0])) * size[1])]
    body = b"".join(chunk(b"IDAT", part) for part in rows)
    return b"\x89PNG\r\n\x1a\n" + head + before + body + after + chunk(b"IEND")


def png_of_one_byte_chunks() -> bytes:
    stored = zlib.compress((b"\0" + bytes(800)) * 800, 0)
    return png((800, 800), pixels=[stored[at : at + 1] for at in range(len(stored))])


# GIF and BMP


def gif_with(extension: bytes) -> bytes:
    data = encoded(Image.new("P", (8, 8)), "GIF")
    at = 13 + 3 * (2 << (data[10] & 7))
    return data[:at] + extension + data[at:]


def gif_of_frames(count: int) -> bytes:
    data = encoded(Image.new("P", (8, 8)), "GIF")
    frames = 13 + 3 * (2 << (data[10] & 7))
    return data[:frames] + data[frames:-1] * count + data[-1:]


def bmp_of_runs(runs: bytes, size: Size = (5000, 2000)) -> bytes:
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    begin = 14 + 40 + len(palette)
    information = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(runs), 0, 0, begin) + information + palette + runs


def bmp_of_one_colour(size: Size) -> bytes:
    row = b"\xff\x05" * (size[0] // 255) + bytes([size[0] % 255, 5]) + b"\0\0"
    return bmp_of_runs(row * size[1] + b"\0\1", size)


# TIFF


def tiff(tags: dict[int, tuple[int, int, int]], behind: bytes = b"", following: int = 0) -> bytes:
    """A grey picture of 64 x 64 with other tags: type, count, and value or place. What is behind begins at 512."""
    long, short = 4, 3
    grey_64: dict[int, tuple[int, int, int]] = {
        256: (long, 1, 64),
        257: (long, 1, 64),
        258: (short, 1, 8),
        259: (short, 1, 1),
        262: (short, 1, 1),
        273: (long, 1, 512),
        277: (short, 1, 1),
        278: (long, 1, 64),
        279: (long, 1, 4096),
    }
    entries = sorted({**grey_64, **tags}.items())
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, count, value) for tag, (kind, count, value) in entries
    )
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following)
    return head.ljust(512, b"\0") + behind + bytes(4096)


def tiff_of_strips(count: int, behind: int) -> bytes:
    return tiff({273: (4, count, 512), 279: (4, count, 512)}, struct.pack("<I", 512) * behind)


def tiff_of_tiles(size: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """Grey tiles, all of which lie on the same bytes."""
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    content = zlib.compress(bytes(tile[0] * tile[1]), 1)
    place = 512 + 8 * count
    sides = {256: size[0], 257: size[1], 322: tile[0], 323: tile[1]}
    tags = {259: (3, 1, 8), **{tag: (4, 1, side) for tag, side in sides.items()}}
    where = {324: (4, count, 512), 325: (4, count, 512 + 4 * count)}
    if count == 1:
        where = {324: (4, 1, place), 325: (4, 1, len(content))}
    tables = struct.pack("<I", place) * count + struct.pack("<I", len(content)) * count
    return tiff({**tags, **where}, tables + content)


def big_tiff_of_strips(count: int) -> bytes:
    entry = struct.pack("<HHQQ", 273, 4, count, 512)
    return (b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1) + entry).ljust(512, b"\0") + bytes(4096)


def tiff_of_directories(tag: int, count: int) -> bytes:
    """One whose tag leads to a directory, in which it leads to another, and so on."""
    places = [512 + 18 * number for number in range(count)]
    chain = (struct.pack("<HHHIII", 1, tag, 4, 1, place, 0) for place in [*places[1:], 512])
    return tiff({tag: (4, 1, places[0]), 273: (4, 1, 512 + 18 * count)}, b"".join(chain))


def tiff_of_pages(count: int) -> bytes:
    """One whose directory is followed by another, and that by another, and so on."""
    places = [512 + 18 * number for number in range(count)]
    chain = (struct.pack("<HHHIII", 1, 254, 4, 1, 0, place) for place in [*places[1:], 0])
    return tiff({273: (4, 1, 512 + 18 * count)}, b"".join(chain), following=512)


# Frames, and sizes that are not what the header says


def animated(kind: str, frames: int, **how: Any) -> bytes:
    others = [Image.new("L", (16, 16), number % 256) for number in range(1, frames)]
    return encoded(Image.new("L", (16, 16)), kind, save_all=True, append_images=others, **how)


def webp_of_another_canvas(frame: Size, canvas: Size) -> bytes:
    image = Image.new("RGBA", frame, (1, 2, 3, 4))
    data = bytearray(encoded(image, "WEBP"))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    return bytes(data)


def gif_of_another_screen(frame: Size, screen: Size) -> bytes:
    data = encoded(Image.new("P", frame), "GIF")
    return data[:6] + struct.pack("<HH", *screen) + data[10:]


def resized(data: bytes, find: bytes, put: bytes) -> bytes:
    """A file whose header has another size."""
    assert data.count(find) >= 1
    return data.replace(find, put, 1)


def avif_in_a_box(frame: tuple[int, int], box: tuple[int, int]) -> bytes:
    """A picture whose boxes tell of another size than its frame has."""
    data = encoded(Image.new("L", frame), "AVIF", speed=10)
    return data.replace(b"ispe\0\0\0\0" + struct.pack(">II", *frame), b"ispe\0\0\0\0" + struct.pack(">II", *box))


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def avif_of_items(count: int) -> bytes:
    """A picture beside which so many items are named that are none."""
    data = encoded(grey(), "AVIF")
    at, meta = data.index(b"iinf") - 4, data.index(b"meta") - 4
    size, meta_size = (struct.unpack_from(">I", data, place)[0] for place in (at, meta))
    others = (box(b"infe", struct.pack(">IIH4sx", 3 << 24, 9 + number, 0, b"none")) for number in range(count))
    named = box(b"iinf", struct.pack(">II", 1 << 24, 1 + count) + data[at + 14 : at + size] + b"".join(others))
    longer = len(named) - size
    data = data[:at] + named + data[at + size :]
    data = data[:meta] + struct.pack(">I", meta_size + longer) + data[meta + 4 :]
    begin = data.index(b"mdat") + 4
    return data.replace(struct.pack(">I", begin - longer), struct.pack(">I", begin), 1)


def avif_of_chunks(count: int) -> bytes:
    """A film that tells of so many pieces of it."""
    data = animated("AVIF", 2, speed=10)
    return data + box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", box(b"stsc", bytes(12 * count)))))))


def polyglot() -> bytes:
    """A picture that is an archive too."""
    file = io.BytesIO(encoded(grey(), "PNG"))
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("another.png", encoded(Image.new("L", (8, 8)), "PNG"))
    return file.getvalue()


def script() -> bytes:
    """A GIF that is JavaScript too: what tells its width begins a comment."""
    return encoded(Image.new("P", (0x2A2F, 8)), "GIF") + b"*/=alert(1)"


def document() -> bytes:
    """A JPEG that is a PDF too, which readers look for in the first kilobyte."""
    begin, end = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n", b"\ntrailer<</Root 1 0 R>>\n%%EOF"
    return encoded(grey(), "JPEG", comment=begin) + end


def plain_zip(files: int, size: int) -> bytes:
    """One that unpacks to a thousand times itself."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(files):
            archive.writestr(f"{number:04}", bytes(size))
    return file.getvalue()


def lying_zip(files: int = 5, size: int = 20_000_000) -> bytes:
    """The same, but it tells of a byte a file."""
    data = bytearray(plain_zip(files, size))
    place = data.index(b"PK\1\2")
    while data.startswith(b"PK\1\2", place):
        data[place + 24 : place + 28] = struct.pack("<I", 1)
        place += 50
    return bytes(data)


def zip_of_folders(count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}/", b"")
    return file.getvalue()


ONE_COLOUR: dict[str, Callable[[Size], bytes]] = {
    "a PNG": lambda size: encoded(grey(size), "PNG"),
    "a WebP": lambda size: encoded(Image.new("RGB", size), "WEBP", lossless=True, method=0),
    "a GIF": lambda size: encoded(Image.new("P", size), "GIF"),
    "a BMP of runs": bmp_of_one_colour,
    "a deflated TIFF": lambda size: encoded(grey(size), "TIFF", compression="tiff_adobe_deflate"),
    "a progressive JPEG": lambda size: encoded(grey(size), "JPEG", progressive=True),
}
"""All of them hardly larger the more pixels they have."""
MEGABYTES = 1_000_000
INTRICATE: dict[str, Callable[[], bytes]] = {
    "a JPEG of 33 scans": lambda: jpeg_of_scans(33),
    "a JPEG of 100,000 scans": lambda: jpeg_of_scans(100_000, (2000, 2000)),
    "a JPEG of 300,000 segments": lambda: jpeg_with(b"", 300_000),
    "a JPEG of 3 MB of EXIF": lambda: jpeg_with(b"Exif\0\0" + bytes(60_000), 50),
    "a PNG of a million chunks": lambda: png(before=chunk(b"prIv") * MEGABYTES),
    "a PNG of a million notes": lambda: png(before=chunk(b"tEXt", b"a\0b") * MEGABYTES),
    "a PNG of chunks of one byte": png_of_one_byte_chunks,
    "a PNG with a million chunks behind": lambda: png(after=chunk(b"prIv") * MEGABYTES),
    "a GIF of a comment in single letters": lambda: gif_with(b"\x21\xfe" + b"\x01c" * MEGABYTES + b"\0"),
    "a GIF of a million comments": lambda: gif_with(b"\x21\xfe\x01c\0" * MEGABYTES),
    "a BMP of runs of one pixel": lambda: bmp_of_runs(b"\x01\x05" * MEGABYTES),
    "a TIFF of a million strips": lambda: tiff_of_strips(MEGABYTES, MEGABYTES),
    "a TIFF that tells of four billion strips": lambda: tiff_of_strips(2**32 - 1, 1),
    "a BigTIFF that tells of four billion strips": lambda: big_tiff_of_strips(2**32),
    "a TIFF of a million resolutions": lambda: tiff({282: (5, MEGABYTES, 512)}, bytes(8 * MEGABYTES)),
    "an AVIF of 10,000 items": lambda: avif_of_items(10_000),
    "an AVIF of 10,000 chunks": lambda: avif_of_chunks(10_000),
}
READ: dict[str, Callable[[], bytes]] = {
    "a GIF of 10,000 frames": lambda: gif_of_frames(10_000),
    "an APNG of 10,000 frames": lambda: animated("PNG", 10_000),
    "a WebP of 10,000 frames": lambda: animated("WEBP", 10_000, lossless=True, method=0),
    "an AVIF of 1,000 items": lambda: avif_of_items(1_000),
    "an AVIF of 10,000 frames": lambda: animated("AVIF", 10_000, speed=10),
    "a TIFF of 10,000 pages": lambda: tiff_of_pages(10_000),
    "a TIFF of directories 10,000 deep": lambda: tiff_of_directories(330, 10_000),
    "a TIFF of EXIF 10,000 deep": lambda: tiff_of_directories(34_665, 10_000),
    "a TIFF whose directories go round": lambda: tiff({}, following=8),
    "a TIFF of strips of one row": lambda: encoded(grey((8, 60_000)), "TIFF", compression="tiff_lzw"),
    "a JPEG with a film behind": motion_photo,
    "a JPEG of 50 megapixels in scans": lambda: encoded(grey((10_000, 5_000)), "JPEG", progressive=True),
    "a picture that is an archive too": polyglot,
    "a picture that is a script too": script,
    "a picture that is a document too": document,
    "a GIF whose screen is smaller than its frame": lambda: gif_of_another_screen((4000, 4000), (8, 8)),
    "a GIF whose screen is larger than its frame": lambda: gif_of_another_screen((8, 8), (4000, 4000)),
}
DAMAGED: dict[str, Callable[[], bytes]] = {
    "a PNG of colours whose palette is missing": lambda: png(colours=3),
    "a JPEG larger than it is": lambda: resized(encoded(grey((64, 48)), "JPEG"), b"\0\x30\0\x40", b"\x10\0\x10\0")[
        :300
    ],
    "a PNG larger than it is": lambda: png((8, 8)).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 0, 0, 0, 0)),
    ),
    "a PNG whose note unpacks to 60 MB": lambda: png(
        before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))
    ),
    "a BMP larger than it is": lambda: resized(
        encoded(grey(), "BMP"), struct.pack("<ii", 64, 64), struct.pack("<ii", 4000, 4000)
    ),
    "a GIF that ends in its header": lambda: encoded(Image.new("P", (8, 8)), "GIF")[:20],
    "a WebP that is half there": lambda: encoded(Image.effect_noise((64, 64), 99), "WEBP", lossless=True)[:700],
    "a WebP whose canvas is smaller than its frame": lambda: webp_of_another_canvas((4000, 4000), (8, 8)),
    "a WebP whose canvas is larger than its frame": lambda: webp_of_another_canvas((8, 8), (4000, 4000)),
    "an AVIF that is half there": lambda: encoded(Image.effect_noise((64, 64), 99), "AVIF")[:700],
}
LARGER: dict[str, Callable[[], bytes]] = {
    "a TIFF of a tile that is larger": lambda: tiff_of_tiles((100, 100), (20_000, 10_000)),
    "a TIFF of tiles that stick out": lambda: tiff_of_tiles((16_000, 16), (16, 1_000_000)),
}
