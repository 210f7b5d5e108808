"""Who looks at the pictures: a model in this process, or a service somewhere else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from service.errors import ServiceError
from service.predict.results import Record
from service.settings import Settings, cores

if TYPE_CHECKING:
    import httpx

CPU_BATCH = 8
"""Pictures that one core looks at together; more gain nothing."""
CONNECTIONS = 16
"""Requests under way at once: more than decode at once, so that runs fill."""
PATIENCE_S = 60.0
"""How long a service may be gone, or overloaded, before we give up on it."""
RETRY_S = 0.5


class ServiceGone(Exception):
    """The service does not answer any more; the message says what was tried last."""


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
        import numpy as np

        from models.prediction import softmax, top

        read = [self._crop(file) for file in files]
        crops = [each for each in read if isinstance(each, np.ndarray)]
        rows = iter(softmax(self._device.run(crops, self.chunk).logits) if crops else ())
        records = []
        for file, each in zip(files, read, strict=True):
            record: Record = {"file": str(file), "model": self.model}
            if isinstance(each, np.ndarray):
                found = top(next(rows), self._classifier.labels, self._top_k, self._threshold)
                record["predictions"] = [{**asdict(one), "score": round(one.score, 6)} for one in found]
            else:
                record.update(each)
            records.append(record)
        return records

    def stop(self) -> None:
        """Nothing here takes long."""

    def _crop(self, file: Path) -> Any:
        """The picture as the model sees it [S, S, 3], or what is wrong with it."""
        import numpy as np

        from service.inference import load_crop

        size = self._classifier.image_size
        pixels = np.empty((size, size, 3), np.uint8)
        try:
            load_crop(file.read_bytes(), self._settings, pixels, self._classifier)
        except ServiceError as error:
            return {"error": error.code, "detail": error.detail}
        except OSError as error:
            return unreadable(error)
        return pixels


class RemoteScorer:
    """Has a running service look, picture by picture; what can be tried again is."""

    chunk = 1
    threads = CONNECTIONS

    def __init__(self, url: str, model: str | None, top_k: int, threshold: float) -> None:
        """Raise ServiceGone if nothing of ours answers there."""
        import httpx

        key = os.environ.get("VOLO_API_KEY", "")
        self._client = httpx.Client(
            base_url=url,
            headers={"X-API-Key": key} if key else {},
            params={"top_k": top_k, "threshold": threshold, **({"model": model} if model else {})},
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        self._stopped = threading.Event()
        try:
            served = [each["name"] for each in self._client.get("/health").json()["models"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ServiceGone(f"there is no service of ours at {url}: {error}") from error
        if model is not None and model not in served:
            raise ServiceGone(f"{url} serves no model {model!r}; there is {', '.join(served)}")
        self.model = model or served[0]

    def score(self, files: Sequence[Path]) -> list[Record]:
        return [self._score(file) for file in files]

    def stop(self) -> None:
        """Ask nothing again from now on."""
        self._stopped.set()

    def _score(self, file: Path) -> Record:
        record: Record = {"file": str(file), "model": self.model}
        try:
            answer = self._ask(file.read_bytes())
        except OSError as error:
            return {**record, **unreadable(error)}
        body = answer.json()
        if answer.is_success:
            return {**record, "predictions": body["predictions"]}
        return {**record, "error": body["code"], "detail": body["detail"]}

    def _ask(self, picture: bytes) -> httpx.Response:
        """The service's last word on a picture."""
        import httpx

        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._client.post("/predict", content=picture)
                if answer.status_code in (401, 404, 405):
                    raise ServiceGone(f"{self._client.base_url} refuses: {answer.text:.200}")
                if answer.status_code not in (502, 503, 504):
                    answer.json()
                    return answer
                why, wait_s = f"status {answer.status_code}", float(answer.headers.get("Retry-After", RETRY_S))
            except (httpx.HTTPError, ValueError) as error:
                why, wait_s = repr(error), RETRY_S
            if time.monotonic() + wait_s > deadline_s or self._stopped.wait(wait_s):
                raise ServiceGone(f"{self._client.base_url} does not answer: {why}")


def unreadable(error: OSError) -> Record:
    """What is told of a file that cannot be read."""
    return {"error": "unreadable_file", "detail": error.strerror or str(error)}
