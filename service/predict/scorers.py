"""Who looks at the pictures: a model in this process, or a service somewhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from service.errors import InferenceFailed, InvalidParameter, ServiceError
from service.predict.pictures import failure, name_of, read
from service.predict.results import Record
from service.settings import Settings, cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CPU_BATCH = 8
"""Pictures that one core looks at together; more gain nothing."""
CONNECTIONS = 16
"""Requests under way at once: more than decode at once, so that runs fill."""
PATIENCE_S = 60.0
"""How long a service may be gone, or overloaded, before we give up on it."""
RETRY_S = 0.5

_AGAIN = frozenset((429, 502, 503, 504))
"""Statuses with which another try may go better."""
_NEVER = frozenset((401, 403, 404, 405))
"""Statuses that every picture would get."""
_TOO_LATE = 504
"""If it comes again and again, it is this picture that takes so long."""


class CannotGoOn(Exception):
    """Whoever is to look at the pictures cannot, any more or at all; the message says why."""


class Scorer(Protocol):
    """Looks at ``chunk`` pictures together, in ``threads`` threads at once."""

    model: str
    chunk: int
    threads: int

    def score(self, files: Sequence[Path]) -> list[Record]:
        """What is in each of the files, or what is wrong with it."""

    def stop(self) -> None:
        """End soon what is under way."""


class LocalScorer:
    """Looks with a model of this process: threads decode, and hand what they have to the device."""

    def __init__(self, settings: Settings, top_k: int, threshold: float) -> None:
        """Raise as ``device.load_classifier`` does."""
        from service.device import Device, load_classifier

        classifier = load_classifier(settings)
        on_gpu = classifier.device.type == "cuda"
        self._device = Device(classifier, settings.max_batch if on_gpu else CPU_BATCH, patience_s=float("inf"))
        self._classifier = classifier
        self._settings = settings
        self._top_k, self._threshold = top_k, threshold
        self.model = classifier.name
        self.chunk = max(self._device.warm_up()) if on_gpu else CPU_BATCH
        self.threads = cores()

    def score(self, files: Sequence[Path]) -> list[Record]:
        """Raises CannotGoOn."""
        from service.device import DeviceFault, OutOfMemory

        loaded = [self._load(file) for file in files]
        crops = [each for each in loaded if not isinstance(each, Exception)]
        try:
            rows = iter(self._device.run(crops, self.chunk).logits if crops else ())
        except (DeviceFault, OutOfMemory) as error:
            raise CannotGoOn(str(error)) from error
        return [
            {"file": name_of(file), "model": self.model}
            | (failure(each) if isinstance(each, Exception) else self._told(next(rows)))
            for file, each in zip(files, loaded, strict=True)
        ]

    def stop(self) -> None:
        """Nothing here takes long."""

    def _load(self, file: Path) -> NDArray[np.uint8] | ServiceError | OSError:
        """The picture as the model sees it [S, S, 3], or what is wrong with it."""
        import numpy as np

        from service.inference import Crop

        size = self._classifier.image_size
        pixels = np.empty((size, size, 3), np.uint8)
        try:
            Crop(read(file, self._settings.max_pixels), self._settings, self._classifier).write(pixels)
        except (ServiceError, OSError) as error:
            return error
        return pixels

    def _told(self, logits: NDArray[np.float32]) -> Record:
        import numpy as np

        from models.prediction import softmax, top

        if not np.isfinite(logits).all():
            return failure(InferenceFailed(InferenceFailed.example))
        found = top(softmax(logits), self._classifier.labels, self._top_k, self._threshold)
        return {"predictions": [{**asdict(each), "score": round(each.score, 6)} for each in found]}


class RemoteScorer:
    """Has a running service look, picture by picture; what may go better is tried again."""

    chunk = 1
    threads = CONNECTIONS

    def __init__(
        self, url: str, settings: Settings, top_k: int, threshold: float, model: str | None = None, key: str = ""
    ) -> None:
        """Raise CannotGoOn if nothing of ours answers there, or not to us."""
        self._url = url
        self._max_pixels = settings.max_pixels
        self._stopped = threading.Event()
        try:
            self._client = httpx.Client(
                base_url=url,
                headers={"X-API-Key": key} if key else {},
                params={"top_k": top_k, "threshold": threshold, **({"model": model} if model else {})},
                timeout=PATIENCE_S,
                limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            )
            served = self._served(self._client.get("/health"))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise CannotGoOn(f"there is no service of ours at {url}: {error}") from error
        if model is not None and model not in served:
            raise CannotGoOn(f"{url} serves no model {model!r}; there is {', '.join(served)}")
        self.model = model or served[0]

    def score(self, files: Sequence[Path]) -> list[Record]:
        """Raises CannotGoOn."""
        return [{"file": name_of(file), "model": self.model, **self._told(file)} for file in files]

    def stop(self) -> None:
        """Ask nothing again from now on."""
        self._stopped.set()

    def _served(self, health: httpx.Response) -> list[str]:
        if health.status_code in _NEVER:
            raise self._refused(health)
        return [str(each["name"]) for each in health.json()["models"]]

    def _told(self, file: Path) -> Record:
        try:
            picture = read(file, self._max_pixels)
        except (ServiceError, OSError) as error:
            return failure(error)
        answer = self._ask(picture)
        body = _body(answer)
        if answer.is_success and "predictions" in body:
            return {"predictions": body["predictions"]}
        code = body.get("code", f"http_{answer.status_code}")
        if answer.is_success or answer.status_code in _NEVER or code == InvalidParameter.code:
            raise self._refused(answer)
        return {"error": code, "detail": body.get("detail", answer.reason_phrase)}

    def _ask(self, picture: bytes) -> httpx.Response:
        """The service's last word on a picture."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            answer, wait_s = None, RETRY_S
            try:
                answer = self._client.post("/predict", content=picture)
                if answer.status_code not in _AGAIN:
                    return answer
                why, wait_s = f"status {answer.status_code}", _retry_after_s(answer)
            except httpx.HTTPError as error:
                why = repr(error)
            if time.monotonic() + wait_s > deadline_s or self._stopped.wait(wait_s):
                if answer is not None and answer.status_code == _TOO_LATE:
                    return answer
                raise CannotGoOn(f"{self._url} does not answer: {why}")

    def _refused(self, answer: httpx.Response) -> CannotGoOn:
        said = _body(answer).get("detail", answer.reason_phrase)
        return CannotGoOn(f"{self._url} refuses with status {answer.status_code}: {said}")


def _body(answer: httpx.Response) -> dict[str, Any]:
    """What a service of ours says; nothing if it was another, such as a proxy before it."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (LookupError, ValueError):  # it can be a date too
        return RETRY_S
