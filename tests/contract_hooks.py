"""What schemathesis has to be told of our routes: how pictures look, and which parameters go together."""

import base64
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.transport.serialization import Binary

from service.outputs import EVIDENCE_LABELS

# schemathesis runs this file by its path
sys.path.append(str(Path(__file__).parent))
from packing import FORMS


def _picture(width: int, height: int, red: int, kind: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), (red, 0, 0)).save(file, kind)
    return file.getvalue()


PICTURES = st.builds(
    _picture,
    width=st.integers(1, 64),
    height=st.integers(1, 64),
    red=st.integers(0, 255),
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
)

schemathesis.openapi.media_type("image/*", PICTURES, aliases=["application/octet-stream"])
FILES = st.dictionaries(
    st.text("abc/", min_size=1, max_size=4).filter(lambda name: name[-1] != "/"), PICTURES, min_size=1
)
for kind, pack in FORMS.values():
    if not kind.startswith("multipart"):
        schemathesis.openapi.media_type(kind, FILES.map(pack))
schemathesis.openapi.format("binary", PICTURES.map(Binary))
schemathesis.openapi.format("byte", PICTURES.map(lambda picture: base64.b64encode(picture).decode()))


@schemathesis.deserializer("application/x-ndjson")
def first_line(context: Any, response: Any) -> Any:
    """Each line is as documented; that the first is goes for all, because the tests see to the others."""
    return json.loads(response.content.splitlines()[0])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """An overlay is one of evidence, and evidence is told of so many labels: OpenAPI cannot say it.

    Nor can it say that whoever has no time gets no answer.
    """
    if str((case.headers or {}).get("X-Request-Timeout-Ms", "")).isdecimal():
        case.headers["X-Request-Timeout-Ms"] += "0000"
    match case.body:
        case {"parameters": {"timeout": int(microseconds)} as parameters} if not isinstance(microseconds, bool):
            parameters["timeout"] += 10**7 if 0 < microseconds < 10**7 else 0
    query = case.query or {}
    asked = {name: str(query.get(name, "")).lower() for name in ("evidence", "overlay", "top_k")}
    if asked["overlay"] == "true" and asked["evidence"] in ("", "false"):
        query["evidence"] = asked["evidence"] = "true"
    if asked["evidence"] == "true" and asked["top_k"] in map(str, range(EVIDENCE_LABELS + 1, 1001)):
        query["top_k"] = EVIDENCE_LABELS
