"""Everything that can be set, read once at the entry and frozen."""

import math
import os
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service import cgroups

SLOWEST_RATE = 0.001


class Settings(BaseSettings):
    """Read from the command line, then ``VOLO_…`` in the environment, then ``.env``: the first that says it wins."""

    model_config = SettingsConfigDict(
        env_prefix="VOLO_",
        env_file=".env",
        env_ignore_empty=True,  # what compose files make of a variable that is not set
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may hold a key
    )

    model: str = Field("embedded", description="Name from `volo models`, or path of a checkpoint.")
    models: str = Field(
        "",
        description="Several models instead of one, separated by commas, each a name, a path or `NAME=PATH`; the first "
        "answers those who name none.",
    )
    labels: Path | None = Field(None, description="File of labels, instead of those that come with the model.")
    weights_sha256: str | None = Field(None, description="Refuse weights with any other SHA-256.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`cuda`, `cuda:1`, `cpu`; `auto` takes the GPU where there is one. "
        "A device asked for and missing is a refusal to start.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What the model computes in; `auto` is bfloat16 where the device does that natively."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for every network.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(0, ge=0, description="HTTP processes; 0 is one for every two cores.")
    max_batch: int = Field(
        64, ge=1, le=1024, description="Most pictures in one run of the model; fewer where more would gain nothing."
    )
    queue_limit: int = Field(256, ge=1, description="Most pictures that wait for the device; more are refused.")
    timeout_s: float = Field(10.0, gt=0, description="Seconds a request may take from its headers to its answer.")
    max_bytes: int = Field(20_000_000, ge=1, description="Largest picture, in bytes as sent.")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest picture, in pixels.")
    body_memory: int = Field(
        500_000_000,
        ge=1,
        description="Most memory, in bytes, that bodies take which one HTTP process receives; more are refused. One of "
        "`POST /predict/batch` takes as much as one and a half of the largest pictures.",
    )
    batch_max_pictures: int = Field(10_000, ge=1, description="Most pictures in one `POST /predict/batch`.")
    batch_max_bytes: int = Field(
        2_000_000_000, ge=1, description="Largest body of one `POST /predict/batch`, as sent and as unpacked."
    )
    decode: Literal["fast", "exact"] = Field(
        "fast",
        description="`fast` reads large JPEGs at a reduced scale, never below four times what the model sees; "
        "`exact` gives bit for bit the crops that published accuracies rest on.",
    )
    decode_memory: int = Field(
        1_000_000_000,
        ge=32_000_000,
        description="Most memory, in bytes, that large pictures take while one HTTP process decodes them: they wait "
        "for it, and one that needs more is refused.",
    )
    page: bool = Field(True, description="Whether there is a page for people at `/`.")
    grace_s: float = Field(
        2.0, ge=0, le=3600, description="Seconds that SIGTERM goes on serving, not ready, before listening ends."
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys, separated by commas, of which every caller must show one; none: everybody may ask.",
    )
    admin_key: SecretStr = Field(
        SecretStr(""), description="The key for `/admin`, and for all else; without, there is no `/admin`."
    )
    probes_need_key: bool = Field(False, description="Whether health and metrics need a key too, where there are keys.")
    rate_limit: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="Requests a second that one caller may send, known by its key or else by its address; 0: no limit.",
    )
    rate_burst: int = Field(20, ge=1, le=1_000_000, description="How many of them may come at once.")
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks, separated by commas, of proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed.",
    )
    tls_cert: Path | None = Field(
        None,
        description="Certificate, with those between it and the root, to serve HTTPS; a new one is taken in seconds.",
    )
    tls_key: Path | None = Field(None, description="The certificate's key.")
    cors_origins: str = Field(
        "",
        pattern=r"^(|\*|https?://[^/,\s]+(,https?://[^/,\s]+)*)$",
        description="Web sites whose pages may ask, such as `https://example.org`, separated by commas; `*` for all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`auto` is text on a terminal and JSON elsewhere."
    )
    tracing: bool = Field(
        False, description="Whether requests are traced with OpenTelemetry; needs `pip install 'volo-serve[tracing]'`."
    )

    @property
    def keys(self) -> list[str]:
        """The keys of which every caller must show one; none if everybody may ask."""
        return [key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip()]

    @field_validator("api_keys", "admin_key")
    @classmethod
    def _check_key(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value().strip(" ")
        if text and not all(part.strip() for part in text.split(",")):
            raise ValueError("an empty key is none")
        if not all("!" <= letter <= "~" for letter in text.replace(" ", "")):
            raise ValueError("keys are visible ASCII, because they travel in a header")
        return SecretStr(text)

    @field_serializer("api_keys", "admin_key", when_used="json")
    def _tell_key(self, secret: SecretStr) -> str:
        """Our own processes get their settings as JSON, through a pipe."""
        return secret.get_secret_value()

    @field_validator("rate_limit")
    @classmethod
    def _check_rate(cls, rate: float) -> float:
        if 0 < rate < SLOWEST_RATE:
            raise ValueError(f"must be 0 or at least {SLOWEST_RATE}, which is a request in {1 / SLOWEST_RATE:,.0f} s")
        return rate

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: str) -> str:
        for proxy in proxies.split(",") if proxies not in ("", "*") else []:
            try:
                ip_network(proxy.strip())
            except ValueError as error:
                raise ValueError(f"{error}; give addresses or networks, or * for all") from error
        return proxies

    @field_validator("tracing")
    @classmethod
    def _check_tracing(cls, wanted: bool) -> bool:
        if wanted and not _installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("OpenTelemetry is needed: pip install 'volo-serve[tracing]'")
        return wanted

    @property
    def sources(self) -> dict[str, str]:
        """The models to serve: what each is called, and where it comes from."""
        return dict(_named(source.strip()) for source in (self.models or self.model).split(","))

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        several = [source for source in self.models.split(",") if source]
        if self.models and len(self.sources) < self.models.count(",") + 1:
            raise ValueError("models: each needs a name of its own; say NAME=PATH")
        if len(several) > 1 and (self.labels or self.weights_sha256):
            raise ValueError("models: labels and weights_sha256 are for one model; name the classes in the checkpoints")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert, tls_key: the one needs the other")
        return self

    @model_validator(mode="after")
    def _check_body_memory(self) -> Self:
        if self.body_memory < 2 * self.max_bytes:
            raise ValueError("body_memory: it needs room for two pictures of max_bytes, for base64 makes one larger")
        return self

    @property
    def http_workers(self) -> int:
        """How many HTTP processes to run."""
        return self.workers or max(1, cores() // 2)

    @property
    def decode_threads(self) -> int:
        """How many pictures one HTTP process decodes at once."""
        return max(1, cores() // self.http_workers)


def _named(source: str) -> tuple[str, str]:
    """What a model is called, and its source: a path goes by its file's name, unless it is given another."""
    name, equals, path = source.partition("=")
    return (name, path) if equals else (Path(source).name.partition(".")[0], source)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # for want of the package that it would lie in
        return False


def cores() -> int:
    """Processors that this process may use, by its affinity and its container's quota."""
    quota = cgroups.processors()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))
