"""HTTPS: a certificate can be renewed under those who are connected, and a bad one changes nothing."""

import asyncio
import errno
import os
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from calling import eventually
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError
from running import run, serving, until
from structlog.testing import capture_logs

from service import tls
from service.settings import Settings


def issue(folder: Path) -> ssl.SSLContext:
    """Have a new authority certify 127.0.0.1; what trusts that authority alone."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.new")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.new")
    (folder / "key.new").replace(folder / "key.pem")
    (folder / "cert.new").replace(folder / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting


def trusted(url: str, trusting: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"{url}/health/live", verify=trusting).status_code == 200
    except httpx.ConnectError:
        return False


def test_it_is_renewed_under_those_who_are_connected_and_a_torn_one_is_not_taken(tmp_path: Path) -> None:
    first = issue(tmp_path)
    files = {"VOLO_TLS_CERT": str(tmp_path / "cert.pem"), "VOLO_TLS_KEY": str(tmp_path / "key.pem")}
    with serving(tmp_path / "service", VOLO_WORKERS="2", **files) as service:
        assert service.url.startswith("https://")
        with httpx.Client(verify=first, base_url=service.url) as connected:
            until(lambda: len(service.said("certificate taken")) == 2 and trusted(service.url, first))
            assert connected.get("/health/live").status_code == 200
            second = issue(tmp_path)
            until(lambda: connected.get("/health/live").is_success and len(service.said("certificate taken")) == 4)
            assert all(trusted(service.url, second) and not trusted(service.url, first) for _ in range(5))
            assert connected.get("/health/live").status_code == 200  # over the connection that was there
        (tmp_path / "cert.pem").write_text("torn")
        until(lambda: service.said("certificate not taken, the one before goes on"))
        assert all(trusted(service.url, second) for _ in range(5))
        for role in ("worker 1", "engine embedded cpu"):
            os.kill(service.children[f"volo: {role}"], signal.SIGKILL)
        (refused, *_) = until(lambda: service.said("cannot serve until the certificate is mended"))
        assert refused["reason"].endswith("cert.pem and " + f"{tmp_path}/key.pem are no certificate and key in PEM")
        until(lambda: trusted(service.url, second) and service.said("connected to the engine")[2:])  # by the other one
        third = issue(tmp_path)
        until(lambda: "volo: worker 1" in service.children and all(trusted(service.url, third) for _ in range(5)))


def test_what_is_older_than_tls_1_2_is_not_spoken_and_who_says_nothing_is_hung_up_on(tmp_path: Path) -> None:
    trusting = issue(tmp_path)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    files = {"VOLO_TLS_CERT": str(tmp_path / "cert.pem"), "VOLO_TLS_KEY": str(tmp_path / "key.pem")}
    with serving(tmp_path / "service", **files, VOLO_TIMEOUT_S="2") as service:
        until(lambda: trusted(service.url, trusting))
        assert not trusted(service.url, old)
        host, port = service.url.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as silent:
            assert silent.recv(1) == b""  # hung up on before uvicorn's own 60 s


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    issue(tmp_path)
    with pytest.raises(ValidationError, match="the one needs the other"):
        Settings(tls_cert=tmp_path / "cert.pem")
    ended = run("serve", VOLO_TLS_CERT=str(tmp_path / "none.pem"), VOLO_TLS_KEY=str(tmp_path / "key.pem"))
    assert ended.returncode == 2
    assert ended.stderr == f"volo: {tmp_path}/none.pem: No such file or directory\n"


def test_it_is_said_which_file_is_wrong_and_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issue(tmp_path)
    (tmp_path / "other").mkdir()
    issue(tmp_path / "other")
    with pytest.raises(tls.UnusableCertificate, match=r"other/key\.pem is not the key of .*cert\.pem"):
        tls.context(certificate, tmp_path / "other/key.pem")
    with pytest.raises(tls.UnusableCertificate, match="Is a directory"):
        tls.context(certificate, tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(tls.UnusableCertificate, match=r"key\.pem is encrypted; give a key without a passphrase"):
        tls.context(certificate, key)


async def test_where_no_file_can_be_opened_for_a_while_the_certificate_is_taken_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(tmp_path)
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    current = tls.context(*files)
    create, left = os.memfd_create, iter([True])

    def none_left(name: str) -> int:
        if next(left, False):
            raise OSError(errno.EMFILE, "Too many open files")
        return create(name)

    monkeypatch.setattr(os, "memfd_create", none_left)
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.0)
    with capture_logs() as logs:
        following = asyncio.create_task(tls.follow(current, *files))
        await eventually(lambda: len(logs) == 2 or following.done())
        following.cancel()
        await asyncio.wait([following])
    refused, taken = logs
    assert refused["reason"] == f"{files[0]} and {files[1]} cannot be looked at: Too many open files"
    assert taken["event"] == "certificate taken"
