import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from file_server import COMMIT, FileServer, serving

from models.download import DownloadError, download, verify

CONTENT = bytes(range(256)) * 4096  # a mebibyte
DIGEST = sha256(CONTENT).hexdigest()
HUB_FILE = "/timm/volo_test/resolve/main/model.safetensors"
RELEASE = "/releases/test.pth.tar"
OTHER = b"weights in another file"
OTHER_DIGEST = sha256(OTHER).hexdigest()
FETCH = """
import hashlib, sys
from models.download import DownloadError, fetch
from models.zoo import Remote
digest = hashlib.file_digest
def told(file, name):
    print("hashed", file.name, file=sys.stderr)
    return digest(file, name)
hashlib.file_digest = told
try:
    print(fetch(Remote(sys.argv[1], sys.argv[2]), sys.argv[3] or None))
except DownloadError as error:
    sys.exit(str(error))
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


def fetch(server: FileServer, home: Path, pin: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """``fetch`` in a process of its own: huggingface_hub reads its environment when it is imported."""
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    arguments = [sys.executable, "-c", FETCH, "timm/volo_test", server.url + RELEASE, pin]
    return subprocess.run(arguments, env=inherited | settings, capture_output=True, text=True, timeout=60)


def fetched(run: "subprocess.CompletedProcess[str]") -> Path:
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.strip())


def cache_hub(home: Path, content: bytes) -> Path:
    """Puts a file where huggingface_hub keeps what it downloaded."""
    repo = home / "hub" / "models--timm--volo_test"
    path = repo / "snapshots" / COMMIT / "model.safetensors"
    for file, text in ((path, content), (repo / "refs" / "main", COMMIT.encode())):
        file.parent.mkdir(parents=True)
        file.write_bytes(text)
    return path


def cache_release(home: Path, content: bytes) -> Path:
    path = home / "assets" / "volo" / "releases" / "default" / "test.pth.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_the_hub_comes_first_and_what_it_gave_is_used_again_without_network(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT, RELEASE: b"not asked for"}
    path = fetched(fetch(server, tmp_path, DIGEST))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "hub")
    server.seen.clear()
    assert fetched(fetch(server, tmp_path, DIGEST, HF_HUB_OFFLINE="1")) == path
    assert server.seen == []


def test_a_download_from_the_hub_that_is_cut_goes_on_where_it_was(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: 12 * CONTENT}
    server.cut_after = {HUB_FILE: 11 * len(CONTENT)}
    path = fetched(fetch(server, tmp_path))
    assert path.read_bytes() == 12 * CONTENT
    # huggingface_hub keeps what it has in steps of 10 MiB
    assert server.gets(HUB_FILE) == ["", f"bytes={10 * len(CONTENT)}-"]


def test_what_the_hub_does_not_have_comes_from_the_release_and_is_used_again(
    server: FileServer, tmp_path: Path
) -> None:
    server.files = {RELEASE: CONTENT}
    path = fetched(fetch(server, tmp_path))
    assert path == tmp_path / "assets" / "volo" / "releases" / "default" / "test.pth.tar"
    assert path.read_bytes() == CONTENT
    server.seen.clear()
    assert fetched(fetch(server, tmp_path)) == path
    assert server.seen == []


def test_when_neither_source_has_the_file_the_error_names_both(server: FileServer, tmp_path: Path) -> None:
    run = fetch(server, tmp_path)
    assert run.returncode == 1
    assert "timm/volo_test: 404" in run.stderr
    assert f"{server.url}{HUB_FILE}" in run.stderr
    assert f"{server.url}{RELEASE}: HTTP Error 404" in run.stderr


def test_offline_nothing_goes_to_the_network_and_no_folder_is_made(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT, RELEASE: CONTENT}
    run = fetch(server, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in run.stderr
    assert run.returncode == 1
    assert server.seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_pin_of_the_release_is_met_while_the_hub_answers(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT, RELEASE: OTHER}
    run = fetch(server, tmp_path, OTHER_DIGEST)
    assert fetched(run).read_bytes() == OTHER
    assert run.stderr.count("hashed") == 2  # the hub's file, the release's


def test_a_pin_of_the_release_is_met_while_the_hubs_cache_has_its_file(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT, RELEASE: OTHER}
    cache_hub(tmp_path, CONTENT)
    run = fetch(server, tmp_path, OTHER_DIGEST)
    assert fetched(run).read_bytes() == OTHER
    assert run.stderr.count("hashed") == 2
    assert server.gets(HUB_FILE) == []


def test_a_pin_of_the_hubs_file_is_met_while_the_release_is_cached(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT}
    cache_release(tmp_path, OTHER)
    assert fetched(fetch(server, tmp_path, DIGEST)).read_bytes() == CONTENT


def test_a_pin_that_nothing_meets_is_an_error_that_names_every_source(server: FileServer, tmp_path: Path) -> None:
    server.files = {HUB_FILE: CONTENT, RELEASE: OTHER}
    hub, release = cache_hub(tmp_path, CONTENT), cache_release(tmp_path, OTHER)
    run = fetch(server, tmp_path, "0" * 64)
    assert run.returncode == 1
    assert f"{hub} has the SHA-256 {DIGEST}, not the pinned {'0' * 64}" in run.stderr
    assert f"{release} has the SHA-256 {OTHER_DIGEST}, not the pinned" in run.stderr
    assert "timm/volo_test has no other file" in run.stderr
    assert f"{server.url}{RELEASE} is not downloaded again" in run.stderr
    assert server.gets(HUB_FILE) == server.gets(RELEASE) == []


def test_an_assets_cache_that_cannot_be_written_matters_only_to_a_release(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assets = str(tmp_path / "file" / "assets")  # no folder can be made there, not even by root
    server.files = {HUB_FILE: CONTENT}
    assert fetched(fetch(server, tmp_path, HF_ASSETS_CACHE=assets)).read_bytes() == CONTENT


def test_a_release_lands_whole_under_its_name(server: FileServer, tmp_path: Path) -> None:
    server.files = {RELEASE: CONTENT}
    path = download(server.url + RELEASE, tmp_path / "new" / "folder" / "file", DIGEST.upper())
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "new" / "folder" / "file.part").exists()


def test_a_torn_release_leaves_nothing_behind_and_the_next_try_starts_afresh(
    server: FileServer, tmp_path: Path
) -> None:
    server.files = {RELEASE: CONTENT}
    server.cut_after = {RELEASE: 300_000}
    path = tmp_path / "file"
    with pytest.raises(DownloadError, match=f"ended after 300000 of {len(CONTENT)} bytes"):
        download(server.url + RELEASE, path)
    assert {left.name for left in tmp_path.iterdir()} <= {"file.lock"}
    download(server.url + RELEASE, path, DIGEST)
    assert server.gets(RELEASE) == ["", ""]


def test_what_a_killed_process_left_of_another_file_is_not_gone_on_from(server: FileServer, tmp_path: Path) -> None:
    server.files = {RELEASE: CONTENT}
    (tmp_path / "file.part").write_bytes(b"half of another file")
    assert download(server.url + RELEASE, tmp_path / "file").read_bytes() == CONTENT


def test_a_release_that_is_not_the_pinned_one_leaves_nothing_behind(server: FileServer, tmp_path: Path) -> None:
    server.files = {RELEASE: CONTENT}
    with pytest.raises(DownloadError, match="not the pinned"):
        download(server.url + RELEASE, tmp_path / "file", "0" * 64)
    assert not (tmp_path / "file").exists()
    assert not (tmp_path / "file.part").exists()


def test_a_release_that_is_there_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    download(server.url + RELEASE, tmp_path / "file")
    assert server.seen == []


def test_a_release_that_is_there_but_is_not_the_pinned_one_is_refused(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OTHER)
    with pytest.raises(DownloadError, match=f"has the SHA-256 {OTHER_DIGEST}, not the pinned"):
        download(server.url + RELEASE, tmp_path / "file", DIGEST)
    assert server.seen == []


def test_a_folder_that_cannot_be_made_is_a_download_error(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"test\.pth\.tar: .*Not a directory|File exists"):
        download(server.url + RELEASE, tmp_path / "file" / "folder" / "file")


def test_a_file_that_cannot_be_read_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be read"):
        verify(tmp_path / "none", DIGEST)


def test_of_several_that_want_the_same_release_one_downloads(server: FileServer, tmp_path: Path) -> None:
    server.files = {RELEASE: CONTENT}
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(download, [server.url + RELEASE] * 4, [tmp_path / "file"] * 4))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.gets(RELEASE) == [""]


def test_a_missing_release_is_an_error_that_names_it(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/releases/test\.pth\.tar: HTTP Error 404"):
        download(server.url + RELEASE, tmp_path / "file")


def test_a_server_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with serving() as server:
        gone = server.url
    with pytest.raises(DownloadError, match=gone):
        download(gone + RELEASE, tmp_path / "file")


def test_a_web_page_in_place_of_a_release_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.files = {RELEASE: b"<html>Please sign in</html>"}
    server.kind = "text/html"
    with pytest.raises(DownloadError, match="a web page is there, and no weights"):
        download(server.url + RELEASE, tmp_path / "file")
    assert {left.name for left in tmp_path.iterdir()} <= {"file.lock"}
