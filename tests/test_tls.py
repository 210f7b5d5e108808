"""HTTPS: a certificate can be renewed under those who are connected, and a bad one changes nothing."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from pydantic import ValidationError
from running import run, serving, until

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


def test_what_is_older_than_tls_1_2_is_not_spoken(tmp_path: Path) -> None:
    trusting = issue(tmp_path)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    files = {"VOLO_TLS_CERT": str(tmp_path / "cert.pem"), "VOLO_TLS_KEY": str(tmp_path / "key.pem")}
    with serving(tmp_path / "service", **files) as service:
        until(lambda: trusted(service.url, trusting))
        assert not trusted(service.url, old)


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    issue(tmp_path)
    (tmp_path / "other").mkdir()
    issue(tmp_path / "other")
    with pytest.raises(ValidationError, match="the one needs the other"):
        Settings(tls_cert=tmp_path / "cert.pem")
    with pytest.raises(ValidationError, match="key values mismatch"):
        Settings(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "other/key.pem")
    ended = run("serve", VOLO_TLS_CERT=str(tmp_path / "none.pem"), VOLO_TLS_KEY=str(tmp_path / "key.pem"))
    assert ended.returncode == 2
    assert ended.stderr == "volo: tls_cert, tls_key: [Errno 2] No such file or directory\n"
