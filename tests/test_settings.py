"""Settings come from where they should, are checked once, and are all documented."""

import re
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from running import ROOT

from service.settings import Settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VOLO_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_it_serves_the_embedded_model_to_this_machine_alone_unless_told_otherwise() -> None:
    settings = Settings()
    assert (settings.model, settings.host, settings.port) == ("embedded", "127.0.0.1", 8000)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("VOLO_PORT=1001\nVOLO_MODEL=from_file\nVOLO_HOST=from-file\nUNRELATED=1\n")
    monkeypatch.setenv("VOLO_PORT", "1002")
    monkeypatch.setenv("VOLO_MODEL", "from_environment")
    settings = Settings(port=1003)
    assert (settings.port, settings.model, settings.host) == (1003, "from_environment", "from-file")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLO_LABELS", "")
    monkeypatch.setenv("VOLO_PORT", "")
    assert (Settings().labels, Settings().port) == (None, 8000)


def test_they_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "127.0.0.1,proxy"),
        ("RATE_LIMIT", "1e-9"),
        ("RATE_LIMIT", "1e9"),
        ("RATE_BURST", "9" * 30),
        ("PORT", "http"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:"),
        ("WORKERS", "-1"),
        ("MAX_BATCH", "0"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "inf"),
        ("GRACE_S", "nan"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"VOLO_{name}", value)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    (fault,) = refusal.value.errors()
    assert fault["loc"] == (name.lower(),)


def test_a_process_gets_them_from_its_parent_unchanged_whatever_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Settings(labels=Path("labels.txt"), timeout_s=2.5)
    monkeypatch.setenv("VOLO_MODEL", "another")
    monkeypatch.setenv("VOLO_WEIGHTS_SHA256", "ff")
    assert Settings.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.parametrize("missing", ["opentelemetry.exporter.otlp.proto.http", "opentelemetry.exporter"])
def test_tracing_without_what_it_needs_is_refused_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # which is how an import fails
    with pytest.raises(ValidationError, match=r"pip install 'volo-serve\[tracing\]'"):
        Settings(tracing=True)
    assert not Settings(tracing=False).tracing


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_there_is_always_somebody_to_serve_and_to_decode(workers: int) -> None:
    settings = Settings(workers=workers)
    assert settings.http_workers >= 1
    assert settings.http_workers == workers or workers == 0
    assert settings.decode_threads >= 1


def test_the_readme_lists_every_setting_with_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(VOLO_\w+)` \| *`?([^|`]*?)`? *\| *\S", readme, re.MULTILINE)
    assert rows == [(f"VOLO_{name.upper()}", _shown(field.default)) for name, field in Settings.model_fields.items()]


def _shown(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default is None else str(default)
