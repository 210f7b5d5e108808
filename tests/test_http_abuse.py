"""What no well-meaning caller sends, over raw sockets to a running service: told so or hung up on."""

import base64
import io
import re
import socket
import zipfile
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from bombs import document, lying_zip, polyglot, script
from running import CAT, Service, serving, until

PICTURE = CAT.read_bytes()
LISTS = b'{"image": [[]' + b",[]" * 6_000_000 + b'], "image": "%s"}' % base64.b64encode(PICTURE)
"""The second value would be taken, if the first were built: into a gigabyte."""
NESTED = b'{"image":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("abused"), VOLO_TIMEOUT_S="5", VOLO_API_KEYS="", VOLO_WORKERS="1") as service:
        until(service.is_ready)
        yield service


def head(*lines: bytes, first: bytes = b"POST /predict HTTP/1.1") -> bytes:
    """A request's line and headers, behind whose answer the service is to hang up."""
    return b"\r\n".join([first, b"Host: x", b"Connection: close", *lines, b"", b""])


def posted(body: bytes, *lines: bytes, path: bytes = b"/predict") -> bytes:
    return head(b"Content-Length: %d" % len(body), *lines, first=b"POST %s HTTP/1.1" % path) + body


def got(target: bytes, *lines: bytes) -> bytes:
    return head(*lines, first=b"GET %s HTTP/1.1" % target)


def typed(kind: bytes, body: bytes, path: bytes = b"/predict") -> bytes:
    return posted(body, b"Content-Type: " + kind, path=path)


def chunked(body: bytes, *lines: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked", *lines) + body


def answers(service: Service, sent: bytes) -> list[int]:
    """The statuses of all answers to these bytes, to where the service hangs up."""
    url = httpx.URL(service.url)
    received = b""
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):  # hung up on before all was sent: the answer came before
            connection.sendall(sent)
        with suppress(ConnectionResetError):
            while some := connection.recv(1 << 16):
                received += some
    return [int(status) for status in re.findall(rb"(?:^|(?<=[\n}]))HTTP/1\.1 (\d{3}) ", received)]


SIZE = b"%d" % len(PICTURE)
CHUNK = b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE)
SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b"/health/live"

LENGTHS = {
    "Content-Length and chunks": (
        head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + SMUGGLED, [400]),
    "chunks and Content-Length": (
        head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n" + SMUGGLED, [400]),
    "two different lengths": (head(b"Content-Length: 0", b"Content-Length: 39") + SMUGGLED, [400]),
    "a list of lengths": (head(b"Content-Length: 5, 5") + b"12345", [400]),
    "a negative length": (head(b"Content-Length: -1"), [400]),
    "a length with a plus": (head(b"Content-Length: +5") + b"12345", [400]),
    "a hexadecimal length": (head(b"Content-Length: 0x5") + b"12345", [400]),
    "a length beyond 64 bits": (head(b"Content-Length: " + b"9" * 30), [400]),
    "a length of exabytes": (head(b"Content-Length: 9223372036854775807"), [413]),
    "no length at all": (head(b"Content-Length:"), [400]),
    "a length with a space before the colon": (head(b"Content-Length : 5") + b"12345", [400]),
    "a length padded with spaces": (head(b"Content-Length:    %s   " % SIZE) + PICTURE, [200]),
    "an unknown transfer coding": (head(b"Transfer-Encoding: xchunked") + SMUGGLED, [400]),
    "chunked that is not last": (head(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + SMUGGLED, [400]),
    "chunked behind a vertical tab": (head(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n" + SMUGGLED, [400]),
}  # fmt: skip
CHUNKS = {
    "whole": (chunked(CHUNK + b"0\r\n\r\n"), [200]),
    "with trailers": (chunked(CHUNK + b"0\r\nX-Late: 1\r\n\r\n"), [200]),
    "with a length behind them": (chunked(CHUNK + b"0\r\nContent-Length: 3\r\n\r\n"), [400]),
    "with an extension": (chunked(b"%x;a=b" % len(PICTURE) + CHUNK[CHUNK.index(b"\r") :] + b"0\r\n\r\n"), [200]),
    "larger than said": (chunked(b"3\r\nabcdef\r\n0\r\n\r\n"), [400]),
    "of a negative size": (chunked(b"-1\r\na\r\n0\r\n\r\n"), [400]),
    "with 0x before the size": (chunked(b"0x1\r\na\r\n0\r\n\r\n"), [400]),
    "of a size beyond 64 bits": (chunked(b"f" * 17 + b"\r\na"), [400]),
    "with bare line feeds": (chunked(b"1\na\n0\n\n"), [400]),
}
HEADS = {
    "a null byte in a value": (got(LIVE, b"X-A: a\0b"), [400]),
    "a null byte in a name": (got(LIVE, b"X\0A: b"), [400]),
    "a bare carriage return": (got(LIVE, b"X-A: a\rX-B: b"), [400]),
    "a header folded over lines": (got(LIVE, b"X-A: a", b" b"), [400]),
    "a header without a colon": (got(LIVE, b"nonsense"), [400]),
    "a header without a name": (got(LIVE, b": a"), [400]),
    "HTTP/0.9": (b"GET /health/live\r\n\r\n", [200]),
    "HTTP/1.2": (head(first=b"GET /health/live HTTP/1.2"), [400]),
    "an unknown method": (head(first=b"BREW /predict HTTP/1.1"), [400]),
    "CONNECT": (head(first=b"CONNECT example.org:443 HTTP/1.1"), [400]),
    "TRACE": (head(first=b"TRACE /predict HTTP/1.1"), [405]),
    "the asterisk": (head(first=b"OPTIONS * HTTP/1.1"), [404]),
    "an absolute target": (got(b"http://elsewhere.example/health/live"), [200]),
    "a way up": (got(b"/../../../etc/passwd"), [404]),
    "an encoded way up": (got(b"/static/%2e%2e/%2e%2e/etc/passwd"), [404]),
    "percent nonsense": (got(b"/%zz%ff%00%"), [404]),
    "a query of a megabyte": (got(LIVE + b"?" + b"q" * 1_000_000), [431]),
    "an expectation we can meet": (posted(PICTURE, b"Expect: 100-continue"), [100, 200]),
    "an expectation we cannot": (posted(PICTURE, b"Expect: the-unexpected"), [200]),
    "an upgrade to websockets": (
        got(LIVE, b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: eA=="), [200]),
    "two patiences": (posted(PICTURE, b"X-Request-Timeout-Ms: 4000", b"X-Request-Timeout-Ms: 1e9"), [422]),
    "an id that is no id": (posted(PICTURE, b"X-Request-ID: \xff\xfe{}" + b"x" * 9000), [200]),
    "a traceparent that is none": (posted(PICTURE, b"traceparent: 00-zz-\xff-01"), [200]),
}  # fmt: skip
PIPELINES = {
    "rubbish behind good ones, hung up on": (SMUGGLED * 3 + b"\0\r\n\r\n", [200, 200, 200]),
    "a body that looks like a request": (typed(b"image/jpeg", SMUGGLED) + SMUGGLED, [415]),
}
FORM = b"multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
JSON = b"application/json"
BODIES = {
    "gzip": (posted(b"\x1f\x8b", b"Content-Encoding: gzip"), [415]),
    "a form without a boundary": (typed(b"multipart/form-data", PART), [400]),
    "a form with another boundary": (typed(b"multipart/form-data; boundary=c", PART), [400]),
    "a form with a boundary of 9 kB": (typed(b"multipart/form-data; boundary=" + b"c" * 9000, PART), [400]),
    "a form with broken headers": (typed(FORM, b"--b\r\n\0: \xff\r\n\r\nx\r\n--b--\r\n"), [400]),
    "a form of 10,000 files": (typed(FORM, PART * 10_000 + b"--b--\r\n"), [400]),
    "a form of 100,000 fields": (typed(b"application/x-www-form-urlencoded", b"a=b&" * 100_000), [415]),
    "JSON 100,000 deep": (typed(JSON, NESTED), [400]),
    "a huge number": (typed(JSON, b'{"image": ' + b"9" * 100_000 + b"}"), [400]),
    "no number": (typed(JSON, b'{"image": NaN}'), [400]),
    "a lone surrogate": (typed(JSON, rb'{"image": "\ud800"}'), [400]),
    "a picture that is said to be tensors": (typed(JSON, PICTURE, b"/v2/models/embedded/infer"), [400]),
    "JSON that is said to be a picture": (typed(b"image/jpeg", b'{"image": "!"}'), [415]),
    "a form that is said to be a picture": (typed(b"image/jpeg", PART), [415]),
    "JSON in another encoding": (typed(JSON + b"; charset=utf-16", '{"image": "!"}'.encode("utf-16")), [400]),
    "a kind that is none": (typed(b"\xff/\xfe;;=,", PICTURE), [415]),
    "a kind of 9 kB": (typed(b"image/" + b"x" * 9000, PICTURE), [200]),
    "two kinds": (posted(PICTURE, b"Content-Type: text/html", b"Content-Type: image/jpeg"), [415]),
    "no UTF-8": (typed(JSON, b'{"image": "\xff"}'), [400]),
    "no base64": (typed(JSON, b'{"image": "!"}'), [400]),
    "a key twice": (typed(JSON, b'{"image": "!", "image": "%s"}' % base64.b64encode(PICTURE)), [200]),
    "six million lists": (typed(JSON, LISTS), [400]),
    "six million lists to Hugging Face": (typed(JSON, LISTS.replace(b"image", b"inputs"), b"/hf"), [400]),
    "six million lists as tensors": (typed(JSON, LISTS, b"/v2/models/embedded/infer"), [413]),
    "100 MB of base64": (typed(JSON, b'{"image": "' + b"A" * 100_000_000 + b'"}'), [413]),
    "tensors 100,000 deep": (typed(JSON, NESTED, b"/v2/models/embedded/infer"), [400]),
    "embeddings 100,000 deep": (typed(JSON, NESTED, b"/embed"), [400]),
    "a batch of one line 100,000 deep": (typed(b"application/x-ndjson", NESTED, b"/predict/batch"), [200]),
    "a batch that is no zip": (typed(b"application/zip", b"PK\x03\x04" + b"\xff" * 999, b"/predict/batch"), [400]),
}  # fmt: skip
BATCH = b"/predict/batch"
DISGUISES = {
    "a picture of another kind": (typed(b"image/gif", PICTURE), [200]),
    "a picture called text": (typed(b"text/html", PICTURE), [415]),
    "a picture called JSON": (typed(JSON, PICTURE), [400]),
    "a picture called a form": (typed(FORM, PICTURE), [400]),
    "a picture called a zip": (typed(b"application/zip", PICTURE, BATCH), [400]),
    "a picture called a tar": (typed(b"application/x-tar", PICTURE, BATCH), [400]),
    "a picture called a gzip": (typed(b"application/gzip", PICTURE, BATCH), [400]),
    "a picture called lines": (typed(b"application/x-ndjson", PICTURE, BATCH), [200]),
    "a zip called a picture": (typed(b"image/png", lying_zip(1, 9)), [415]),
    "a zip called a tar": (typed(b"application/x-tar", lying_zip(1, 9), BATCH), [400]),
    "a picture that is a zip too": (typed(b"image/png", polyglot()), [200]),
    "a zip that is a picture too": (typed(b"application/zip", polyglot(), BATCH), [200]),
    "a picture that is a script too": (typed(b"text/javascript", script()), [415]),
    "a script that is a picture too": (typed(b"image/gif", script()), [200]),
    "a document that is a picture too": (typed(b"image/jpeg", document()), [200]),
    "a zip that lies about its sizes": (typed(b"application/zip", lying_zip(), BATCH), [200]),
}
ABUSES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "length": LENGTHS, "chunks": CHUNKS, "head": HEADS, "pipeline": PIPELINES, "body": BODIES,
        "disguise": DISGUISES,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize(("sent", "expected"), ABUSES.values(), ids=ABUSES)
def test_what_no_request_should_be_gets_its_answer_and_disturbs_nobody(
    service: Service, sent: bytes, expected: list[int]
) -> None:
    assert answers(service, sent) == expected
    assert service.predict().status_code == 200


def test_what_callers_send_makes_no_lines_of_the_log(service: Service) -> None:
    evil = b"evil\xc2\x9b2J\xe2\x80\xa8{}"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr('evil\n{"event": "all is lost"}\x1b[2J', b"no picture")
    assert answers(service, got(LIVE, b"User-Agent: \x1b[2J")) == [400]
    assert answers(service, got(b"/evil%0A%1B%5B2J?evil=%0Aevil", b"User-Agent: " + evil)) == [404]
    assert answers(service, posted(PICTURE, b"X-Request-ID: " + evil, b"X-Api-Key: " + evil)) == [200]
    assert answers(service, typed(b"application/zip", archive.getvalue(), b"/predict/batch")) == [200]
    assert not set("\x1b\x9b\u2028\r") & set(service.text)
    assert "all is lost" not in [line["event"] for line in service.log]  # which fails on a line that is no JSON


def test_nothing_of_it_was_our_fault(service: Service) -> None:
    assert service.counted("volo_requests_total") > 0
    for code in ("internal_error", "inference_failed"):
        assert service.counted("volo_requests_total", outcome=code) == 0
