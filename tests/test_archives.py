"""The files of a tar or a zip come one after the other, in little memory, whatever the archive is made to do."""

import asyncio
import contextlib
import errno
import gzip
import io
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import Files, packed_tar, packed_zip, pieces

from service.archives import Chunks, Entry, Limits
from service.errors import (
    InsufficientStorage,
    MalformedBody,
    NotAnImage,
    Overloaded,
    ServiceError,
    TooManyBytes,
    TooManyPictures,
    TruncatedImage,
)
from service.tars import tar_entries
from service.zips import zip_entries

LIMITS = Limits(picture_bytes=10_000, total_bytes=1_000_000, pictures=100)
FILES: Files = {"a.jpg": b"A" * 700, "folder/ä.png": b"", "c": bytes(range(256)) * 39, "d.gif": b"D" * 512}
Entries = Callable[[Chunks, Limits], AsyncIterator[Entry]]

ARCHIVES: dict[str, tuple[Entries, bytes]] = {
    "zip": (zip_entries, packed_zip(FILES)),
    "stored zip": (zip_entries, packed_zip(FILES, zipfile.ZIP_STORED)),
    "tar": (tar_entries, packed_tar(FILES)),
    "GNU tar": (tar_entries, packed_tar(FILES, form=tarfile.GNU_FORMAT)),
    "tar.gz": (tar_entries, packed_tar(FILES, "w:gz")),
}


async def found(entries: Entries, archive: bytes, limits: Limits = LIMITS, size: int = 1000) -> list[Entry]:
    return [entry async for entry in entries(pieces(archive, size), limits)]


def contents(files: Files) -> list[tuple[str, bytes]]:
    return list(files.items())


async def before_failing(kind: type[ServiceError], entries: Entries, archive: bytes, limits: Limits = LIMITS) -> int:
    """How many entries came before the archive turned out to be wrong in this way."""
    count = 0
    try:
        async for _ in entries(pieces(archive), limits):
            count += 1
    except kind:
        return count
    raise AssertionError(f"{count} entries came, and no {kind.__name__}")


@pytest.mark.parametrize("size", [1, 511, 10**6])
@pytest.mark.parametrize(("entries", "archive"), ARCHIVES.values(), ids=ARCHIVES)
async def test_every_file_comes_in_order_however_the_archive_was_cut(
    entries: Entries, archive: bytes, size: int
) -> None:
    if entries is zip_entries and size == 1:
        size = 7  # each piece is a hop to a thread
    assert await found(entries, archive, size=size) == contents(FILES)


@pytest.mark.parametrize("pack", [packed_zip, packed_tar])
async def test_folders_dotfiles_and_what_macos_adds_are_left_out(pack: Callable[[Files], bytes]) -> None:
    names = ["./a.jpg", "__MACOSX/._a.jpg", ".DS_Store", "folder/._b.jpg", ".git/c.jpg", "../d.jpg", "e..jpg"]
    entries = zip_entries if pack is packed_zip else tar_entries
    entered = await found(entries, pack(dict.fromkeys(names, b"x")))
    assert [entry.name for entry in entered] == ["./a.jpg", "../d.jpg", "e..jpg"]


async def test_what_is_no_file_in_a_tar_is_left_out() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("other")
            member.type, member.linkname, member.size = kind, "x" * 200, 7000
            opened.addfile(member)
        unknown = tarfile.TarInfo("unknown")
        unknown.type, unknown.size = b"Z", 700
        opened.addfile(unknown, io.BytesIO(bytes(700)))
        last = tarfile.TarInfo("last")
        last.size = 1
        opened.addfile(last, io.BytesIO(b"x"))
    assert await found(tar_entries, archive.getvalue()) == [("last", b"x")]


async def test_folders_in_a_zip_are_left_out() -> None:
    assert await found(zip_entries, packed_zip({"folder/": b"", "folder/a": b"x"})) == [("folder/a", b"x")]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
async def test_long_names_are_told_in_every_format(form: int) -> None:
    files = {"ä" * 40 + "/" + "b" * 90: b"1", "short": b"2"}
    if form != tarfile.USTAR_FORMAT:
        files = {"ö" * 200: b"0", **files}
    assert await found(tar_entries, packed_tar(files, form=form)) == contents(files)


async def test_a_name_that_is_no_text_still_names() -> None:
    archive = packed_tar({"aXb": b"1"}).replace(b"aXb", b"a\xffb")
    header = bytearray(archive[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert await found(tar_entries, bytes(header) + archive[512:]) == [("a\N{REPLACEMENT CHARACTER}b", b"1")]


@pytest.mark.parametrize("name", ARCHIVES)
async def test_a_file_that_is_too_large_is_one_bad_entry(name: str) -> None:
    entries, archive = ARCHIVES[name]
    entered = await found(entries, archive, LIMITS._replace(picture_bytes=699))
    assert [entry.content for entry in (entered[1], entered[3])] == [b"", b"D" * 512]
    assert [type(entry.content) for entry in (entered[0], entered[2])] == [TooManyBytes, TooManyBytes]


async def test_a_directory_that_lies_about_sizes_lets_nothing_larger_through() -> None:
    archive = bytearray(packed_zip({"bomb": bytes(5_000_000)}))
    for place in (22, archive.rindex(b"PK\1\2") + 24):  # uncompressed size: of the file, and in the directory
        archive[place : place + 4] = struct.pack("<I", 5)
    (bomb,) = await found(zip_entries, bytes(archive))
    assert isinstance(bomb.content, TruncatedImage)


async def test_what_unpacks_to_more_than_is_allowed_at_once_ends_there() -> None:
    limits = Limits(picture_bytes=10_000_000, total_bytes=3_000_000, pictures=100)
    files = {str(number): bytes(1_000_000) for number in range(10)}
    assert await before_failing(TooManyBytes, zip_entries, packed_zip(files), limits) == 3
    assert await before_failing(TooManyBytes, tar_entries, packed_tar(files, "w:gz"), limits) == 2
    too_large = limits._replace(picture_bytes=999_999)  # what is thrown away costs time too
    assert await before_failing(TooManyBytes, zip_entries, packed_zip(files), too_large) == 3
    assert await before_failing(TooManyBytes, tar_entries, packed_tar(files, "w:gz"), too_large) == 2


async def test_what_is_inflated_of_a_file_counts_whatever_the_directory_says() -> None:
    limits = Limits(picture_bytes=10_000_000, total_bytes=300_000, pictures=100)
    archive = bytearray(packed_zip({str(number): bytes(1_000_000) for number in range(10)}))
    place = archive.index(b"PK\1\2")
    while archive.startswith(b"PK\1\2", place):
        archive[place + 24 : place + 28] = struct.pack("<I", 5)
        place += 47
    assert await before_failing(TooManyBytes, zip_entries, bytes(archive), limits) == 4


BOMBS: dict[str, tuple[Entries, Callable[[], bytes]]] = {
    "one file in a zip": (zip_entries, lambda: packed_zip({"bomb": bytes(100_000_000)})),
    "a gzip of nothing": (tar_entries, lambda: gzip.compress(bytes(200_000_000), 1)),
    "one file in a tar.gz": (tar_entries, lambda: packed_tar({"bomb": bytes(100_000_000)}, "w:gz")),
    "a long preface": (tar_entries, lambda: gzip.compress(_header(tarfile.XHDTYPE, 90_000_000) + bytes(90_000_000), 1)),
    "many empty members": (tar_entries, lambda: gzip.compress(_header(tarfile.DIRTYPE, 0) * 100_000, 1)),
    "a long directory": (zip_entries, lambda: packed_zip({f"{'x' * 200}{number}": b"" for number in range(5_000)})),
}


def _header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("member")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(("entries", "make"), BOMBS.values(), ids=BOMBS)
async def test_a_bomb_takes_little_memory(entries: Entries, make: Callable[[], bytes]) -> None:
    bomb = make()
    limits = LIMITS._replace(total_bytes=1_000_000_000)
    tracemalloc.start()
    with contextlib.suppress(ServiceError):
        async for _ in entries(pieces(bomb, 65536), limits):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize(("reason", "refusal"), [(errno.EMFILE, Overloaded), (errno.ENOSPC, InsufficientStorage)])
async def test_a_zip_without_a_place_to_lie_in_is_refused_with_the_right_reason(
    monkeypatch: pytest.MonkeyPatch, reason: int, refusal: type[ServiceError]
) -> None:
    def no_file(**_: object) -> None:
        raise OSError(reason, "no file")

    monkeypatch.setattr("service.zips.TemporaryFile", no_file)
    with pytest.raises(refusal):
        await found(zip_entries, packed_zip({"a": b"b"}))


async def test_a_zip_that_is_given_up_has_its_file_until_nobody_writes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    writing, gate, closed = threading.Event(), threading.Event(), []

    def write(file: IO[bytes], chunk: bytes) -> None:
        writing.set()
        assert gate.wait(20)
        closed.append(file.closed)

    monkeypatch.setattr("service.zips.write_whole", write)
    reading = asyncio.create_task(found(zip_entries, packed_zip(FILES)))
    await asyncio.to_thread(writing.wait, 20)
    reading.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert closed == [False]


async def test_a_file_in_a_zip_is_in_memory_little_more_than_once() -> None:
    size = 10_000_000
    entries = zip_entries(pieces(packed_zip({"a": bytes(size)}), 65536), Limits(size, size, 1))
    tracemalloc.start()
    ((_, content),) = [entry async for entry in entries]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert content == bytes(size)
    assert peak < 1.3 * size


async def test_a_zip_with_a_directory_of_far_too_many_is_refused() -> None:
    files = {f"{'x' * 200}{number}": b"" for number in range(1_000)}
    assert await before_failing(TooManyPictures, zip_entries, packed_zip(files)) == 0


@pytest.mark.parametrize("told", [300, 1])
async def test_a_zip_of_far_too_many_entries_is_refused_before_it_is_taken_apart(
    monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    archive = bytearray(packed_zip({f"{number}/": b"" for number in range(301)}))
    archive[-14:-10] = struct.pack("<HH", told, told)
    monkeypatch.setattr("zipfile.ZipInfo.__init__", lambda *_: pytest.fail("an entry was made"))
    assert await before_failing(TooManyPictures, zip_entries, bytes(archive)) == 0


async def test_as_many_entries_as_there_may_be_are_read() -> None:
    files = {**{f"{number}/": b"" for number in range(299)}, "a": b"b"}
    assert await found(zip_entries, packed_zip(files)) == [("a", b"b")]


async def test_an_entry_with_much_beside_it_is_not_taken_apart() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.extra = b"\1\0\0\0" * 16_000
        archive.writestr(info, b"b")
    assert await before_failing(MalformedBody, zip_entries, file.getvalue()) == 0


async def test_a_file_may_look_like_a_directory() -> None:
    files = {"a.zip": packed_zip({f"{number}/": b"" for number in range(9)})[-1000:]}
    files["b"] = files["a.zip"][files["a.zip"].index(b"PK\1\2") :]
    packed = packed_zip(files, zipfile.ZIP_STORED)
    assert await found(zip_entries, packed, LIMITS._replace(pictures=2)) == contents(files)


async def test_an_encrypted_or_damaged_file_in_a_zip_is_one_bad_entry() -> None:
    archive = bytearray(packed_zip({"encrypted": b"1" * 100, "damaged": b"2" * 100, "good": b"3" * 100}, 0))
    directory = archive.index(b"PK\1\2")
    archive[directory + 8] |= 1
    archive[archive.index(b"2" * 100) + 50] = 0
    entered = await found(zip_entries, bytes(archive))
    assert [type(entry.content) for entry in entered] == [NotAnImage, TruncatedImage, bytes]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_other_methods_than_deflate_are_one_bad_entry(method: int) -> None:
    (entry,) = await found(zip_entries, packed_zip({"a": bytes(10)}, method))
    assert isinstance(entry.content, NotAnImage)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
async def test_of_a_tar_that_is_cut_short_come_the_files_before(mode: str, keep: float) -> None:
    noise = Random(0)  # which gzip makes no smaller
    whole = packed_tar({str(number): noise.randbytes(900) for number in range(50)}, mode)
    came = await before_failing(MalformedBody, tar_entries, whole[: int(keep * len(whole)) + 100])
    assert came == pytest.approx(keep * 50, abs=6)


async def test_a_tar_of_far_too_many_members_is_not_read_to_its_end() -> None:
    archive = _header(tarfile.REGTYPE, 0) + _header(tarfile.DIRTYPE, 0) * 25
    assert await before_failing(TooManyPictures, tar_entries, archive, LIMITS._replace(pictures=3)) == 1


@pytest.mark.parametrize(
    ("entries", "archive"),
    [
        (zip_entries, b""),
        (zip_entries, b"PK\3\4 no zip"),
        (zip_entries, packed_zip(FILES)[:-30]),
        (tar_entries, b"no tar at all" * 100),
        (tar_entries, b"short"),
        (tar_entries, b"\x1f\x8b no gzip"),
        (tar_entries, gzip.compress(b"no tar" * 100)),
        (tar_entries, packed_tar(FILES, "w:gz")[:-8]),
        (tar_entries, _header(tarfile.REGTYPE, 10)),
        (tar_entries, _header(tarfile.XHDTYPE, 10**6) + bytes(10**6)),
        (tar_entries, _header(tarfile.REGTYPE, -1)),
    ],
)
async def test_what_is_no_such_archive_is_malformed(entries: Entries, archive: bytes) -> None:
    await before_failing(MalformedBody, entries, archive, LIMITS._replace(total_bytes=10**7))


async def test_gzips_may_follow_each_other_and_be_padded() -> None:
    archive = packed_tar(FILES)
    parts = gzip.compress(archive[:1000]) + gzip.compress(archive[1000:]) + bytes(700)
    for size in (10, 10**6):
        assert await found(tar_entries, parts, size=size) == contents(FILES)


async def test_an_empty_archive_has_no_files() -> None:
    for entries, archive in [(zip_entries, packed_zip({})), (tar_entries, packed_tar({})), (tar_entries, b"")]:
        assert await found(entries, archive) == []


async def test_the_files_of_a_tar_come_before_its_end_is_there() -> None:
    archive = packed_tar({"a": b"x" * 600, "b": b"y"}, "w:gz")
    end = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield gzip.compress(packed_tar({"a": b"x" * 600})[:1536])
        await end.wait()
        yield archive

    entered = tar_entries(slowly(), LIMITS)
    assert await anext(entered) == ("a", b"x" * 600)
    end.set()
    assert [entry.name async for entry in entered] == ["a", "b"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_makes_a_zip_or_tar_raise_anything_unforeseen(data: st.DataObject) -> None:
    entries, archive = data.draw(st.sampled_from(list(ARCHIVES.values())))
    damaged = bytearray(archive)
    places = st.integers(-min(700, len(damaged)), len(damaged) - 1)  # a zip's directory is at its end
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        damaged[place] = value

    async def read() -> None:
        with contextlib.suppress(ServiceError):
            assert len(await found(entries, bytes(damaged), size=65536)) <= LIMITS.pictures

    asyncio.run(read())
