"""The page for people, at ``/``: a few files that ask nobody but this service."""

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

ASSETS = files("service.assets")
SAMPLES = files("models.data") / "samples"

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # after an upgrade nobody shall have half of the old page
}
SAMPLE_HEADERS = {**HEADERS, "Cache-Control": "max-age=86400"}


class _Css(Response):
    media_type = "text/css"


class _JavaScript(Response):
    media_type = "text/javascript"


class _Svg(Response):
    media_type = "image/svg+xml"


class _Jpeg(Response):
    media_type = "image/jpeg"


_KINDS: dict[str, type[Response]] = {".html": HTMLResponse, ".css": _Css, ".js": _JavaScript, ".svg": _Svg}


def create_router() -> APIRouter:
    """The page, its parts and the sample pictures; they are read now, and served from memory."""
    router = APIRouter(tags=["page"], include_in_schema=False)
    for asset in ASSETS.iterdir():
        suffix = asset.name[asset.name.rfind(".") :]
        if suffix in _KINDS:
            path = "/" if asset.name == "index.html" else f"/{asset.name}"
            _add(router, path, asset, _KINDS[suffix], HEADERS)
    for sample in SAMPLES.iterdir():
        if sample.name.endswith(".jpg"):
            _add(router, f"/samples/{sample.name}", sample, _Jpeg, SAMPLE_HEADERS)
    return router


def _add(router: APIRouter, path: str, file: Traversable, kind: type[Response], headers: Mapping[str, str]) -> None:
    content = file.read_bytes()

    async def serve() -> Response:
        return kind(content, headers=headers)

    router.add_api_route(path, serve, response_class=kind, name=file.name)
