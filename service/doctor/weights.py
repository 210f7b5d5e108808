"""Whether the weights of the models that are set are here, and whole."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from huggingface_hub import constants

from models import weights, zoo
from models.download import DownloadError, cached, hub_sha256, verify
from models.labels import load_labels
from service.doctor.findings import Finding, failed, warning, well
from service.settings import Settings

REACH_S = 5.0


def check(settings: Settings) -> Iterator[Finding]:
    """Each model's weights."""
    for name, source in settings.sources.items():
        yield look(name, source, settings.weights_sha256)


def look(name: str, source: str, sha256: str | None) -> Finding:
    """The weights of one model, from the catalogue or a path."""
    try:
        model = zoo.resolve(source)
        if isinstance(model, Path):
            return _read(name, model, sha256)
        if isinstance(model.weights, Path):
            return _read(name, model.weights, sha256)
        paths = cached(model.weights)
        return _read(name, paths[0], sha256) if paths else _absent(name, model.weights)
    except (OSError, ValueError) as error:
        return failed("Weights", str(error), "Name another model, or replace the file.")


def image_sizes(settings: Settings) -> list[int]:
    """Pixels on a side of each model, as far as its name tells; 224 of a checkpoint that is named by its path."""
    return [224 if isinstance(model, Path) else model.image_size for model in _known(settings)]


def here(settings: Settings) -> bool:
    """Whether all that is needed is on this machine."""
    models = _known(settings)
    here = [isinstance(model, Path) or isinstance(model.weights, Path) or cached(model.weights) for model in models]
    return len(here) == len(settings.sources) and all(here)


def labels(settings: Settings) -> Iterator[Finding]:
    """The file of labels, if one is set; whether there are as many as classes is seen on the whole way."""
    if settings.labels:
        try:
            count = len(load_labels(settings.labels))
        except (OSError, ValueError) as error:
            yield failed("Labels", str(error), "Mend the file, or leave VOLO_LABELS out.")
        else:
            yield well("Labels", f"{settings.labels}: {count:,}")


def _known(settings: Settings) -> list[zoo.Model | Path]:
    """The models that there are, of those that are set."""
    known = []
    for source in settings.sources.values():
        with contextlib.suppress(ValueError, OSError):
            known.append(zoo.resolve(source))
    return known


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there; empty if something can."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _reachable(url: str) -> bool:
    try:
        httpx.head(url, timeout=REACH_S)
    except httpx.HTTPError:
        return False
    return True


def _read(name: str, path: Path, sha256: str | None) -> Finding:
    verify(path, sha256)
    known = hub_sha256(path)
    try:
        verify(path, known if known != sha256 else None)
    except DownloadError:
        advice = f"Delete {path.resolve()}, and it is downloaded again."
        return failed("Weights", f"{name}: {path} is damaged: its SHA-256 is not the hub's", advice)
    variant, _ = weights.infer_config(weights.read(path))
    verified = "; verified by its SHA-256" if sha256 or known else ""
    return well("Weights", f"{name}: {path}, {variant}, {path.stat().st_size / 1e6:.0f} MB{verified}")


def _absent(name: str, remote: zoo.Remote) -> Finding:
    cache = Path(constants.HF_HUB_CACHE)
    if constants.HF_HUB_OFFLINE:
        advice = f"Unset HF_HUB_OFFLINE, or bring the cache along: {cache}."
        return failed("Weights", f"{name}: no cache has them, and HF_HUB_OFFLINE forbids to load them", advice)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    found = f"{name}: not here yet; {shutil.disk_usage(there).free / 1e9:.1f} GB free for {cache}"
    if why := _unwritable(there):
        advice = "Let the user of the service write there (of a volume: chown), or set HF_HOME to where it may."
        return failed("Weights", f"{found}; nothing can be written there: {why}", advice)
    if not any(map(_reachable, (constants.ENDPOINT, remote.release_url))):
        advice = f"Let it reach {constants.ENDPOINT}, set HTTPS_PROXY or HF_ENDPOINT, or bring the cache along."
        return failed("Weights", f"{found}; nor can the hub be reached", advice)
    return warning("Weights", found, "`volo serve` downloads them at its first start, which takes a while.")
