"""One picture through a model: what every protocol's routes call, whatever they make of the answer."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.prediction import Prediction, softmax, top
from models.preprocess import crop
from service import metrics
from service.accounting import Record
from service.decoders import Heavy
from service.errors import DeadlineExceeded, EngineUnavailable, RetryableError, TooManyPixels, UnknownModel
from service.images import Opened, enough_for
from service.link import RETRY_S, Link
from service.outputs import Evidence, Outputs, Wants
from service.patience import Closing
from service.session import RESTART_S
from service.settings import Settings
from service.wire import ModelCard

Picture = bytes | NDArray[np.uint8]
"""A file in one of the formats that are read, or pixels [H, W, 3]."""

LIGHT_BYTES = 32_000_000
"""A picture that needs no more is decoded at once: so many for each decoder are the least that a worker needs."""
BACKGROUND_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Inference:
    """What a model says of one picture.

    ``logits`` [classes] are in the order of the card's labels. ``features`` [C], the class token before the head, and
    the evidence are there if they were wanted. ``size`` is the upright picture's width and height.
    """

    card: ModelCard
    size: tuple[int, int]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None
    evidence: Evidence | None

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities [classes]."""
        return softmax(self.logits)

    def top(self, k: int, threshold: float = 0.0) -> list[Prediction]:
        """The ``k`` likeliest labels with at least ``threshold`` probability, the likeliest first."""
        return top(self.scores, self.card.labels, k, threshold)


class Models:
    """The models that are served, by name; the first answers those who name none.

    ``draining`` is set when the service is about to end: it still answers, but pictures should be sent elsewhere.
    ``closing`` is when it does not answer any longer.
    """

    def __init__(self, links: Mapping[str, Link], settings: Settings) -> None:
        self._links = dict(links)
        self._settings = settings
        self.draining = False
        self.closing = Closing()
        # Bulk work in the background leaves decoders and each model's slots to those who wait for an answer.
        self._background = {name: asyncio.Semaphore(settings.max_batch) for name in links}
        self._background_decoding = asyncio.Semaphore(max(1, settings.decode_threads - 1))
        for name in ("", *links):  # of what is refused before it is known for whom it is
            metrics.expect_rejections(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._links)

    def link(self, name: str | None = None) -> Link:
        """The link to a model's engine.

        Raises:
            UnknownModel: none of that name is served.
        """
        return self._links[self.name(name)]

    def name(self, name: str | None = None) -> str:
        """The name itself, or the first model's; raise as ``link`` does."""
        if name is None:
            return next(iter(self._links))
        if name not in self._links:
            raise UnknownModel(f"No model {name!r:.80} is served; there is {', '.join(self._links)}.")
        return name

    def card(self, name: str | None = None) -> ModelCard:
        """What is known of a model.

        Raises:
            UnknownModel: none of that name is served.
            EngineUnavailable: it is not loaded yet.
        """
        card = self.link(name).card
        if card is None:
            raise EngineUnavailable("The model is not loaded yet.", RESTART_S)
        return card

    def ailments(self, name: str | None = None) -> list[str]:
        """Why pictures should not be sent here now, to this model or if none is named to any; empty if they should.

        Raises:
            UnknownModel: none of that name is served.
        """
        links = self._links if name is None else {name: self.link(name)}
        several = len(links) > 1
        return ["the service is shutting down"] * self.draining + [
            f"{name}: {ailment}" if several else ailment for name, link in links.items() for ailment in link.ailments()
        ]

    def hopeless(self) -> list[str]:
        """Why only a new start of the whole service may help, if that is so."""
        return [f"{name}: engines die again and again" for name, link in self._links.items() if link.hopeless]

    async def infer(
        self,
        picture: Picture,
        record: Record,
        model: str | None = None,
        wants: Wants = Wants.NONE,
        *,
        background: bool = False,
    ) -> Inference:
        """Decode, crop and score a picture, in a slot shared with the engine.

        The record's deadline holds for all of it. In the ``background`` it takes what others leave: it waits for room
        instead of being refused, and for at most ``BACKGROUND_PATIENCE_S``.

        Raises:
            UnknownModel: no model of that name is served.
            ServiceError: as ``images.decode``, ``Link.slot`` and ``Link.classify`` do.
        """
        record.model = self.name(model)
        link = self._links[record.model]
        if background:
            return await self._infer_patiently(picture, record, link, wants, self._background[record.model])
        return await self._infer(picture, record, link, wants, self._deadline_s(record))

    def knock(self, record: Record, model: str | None = None) -> None:
        """Nothing, if a picture of this request that came now would be let in: before its body is received, say.

        Raises:
            UnknownModel: no model of that name is served.
            Overloaded, EngineUnavailable: as ``Link.admit`` does.
        """
        record.model = self.name(model)
        self._links[record.model].admit(self._deadline_s(record), self._settings.max_batch)

    def _deadline_s(self, record: Record) -> float:
        return min(record.deadline_s, record.arrival_s + self._settings.timeout_s)

    async def _infer_patiently(
        self, picture: Picture, record: Record, link: Link, wants: Wants, room: asyncio.Semaphore
    ) -> Inference:
        deadline_s = min(record.deadline_s, time.monotonic() + BACKGROUND_PATIENCE_S)
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                while True:
                    try:
                        async with room:
                            return await self._infer(picture, record, link, wants, deadline_s, background=True)
                    except RetryableError as error:
                        if time.monotonic() + error.retry_after_s > deadline_s:
                            raise
                        await asyncio.sleep(max(error.retry_after_s, RETRY_S))
        except TimeoutError:
            patience_s = max(deadline_s - record.arrival_s, 0.0)
            raise DeadlineExceeded(f"The answer was not ready within {patience_s:.3g} s.") from None

    async def _infer(
        self,
        picture: Picture,
        record: Record,
        link: Link,
        wants: Wants,
        deadline_s: float,
        background: bool = False,
    ) -> Inference:
        loaded: Loaded

        def load(pixels: NDArray[np.uint8], card: ModelCard) -> Heavy | None:
            if not background:
                slot.session.hope(deadline_s)  # its turn to be decoded may have come late
            crop = Crop(picture, self._settings, card)

            def write() -> None:
                nonlocal loaded
                loaded = crop.write(pixels)

            if crop.need_bytes > LIGHT_BYTES:
                return Heavy(crop.need_bytes, write)
            write()
            return None

        # the background finds out in its turn; and without room of its own it would never get a slot under load
        with link.slot() if background else link.slot(deadline_s, leave=self._settings.max_batch) as slot:
            async with self._background_decoding if background else nullcontext():
                with record.stage("decode"):
                    await link.load(slot, load)
            asked_s = time.monotonic()
            answer = await link.classify(slot, deadline_s, wants, background=background)
            record.took("queue", asked_s, answer.queue_s)
            record.took("device", asked_s + answer.queue_s, answer.device_s)
            inference = Inference(slot.card, loaded.size, *_taken(slot.outputs, wants))
        _count(picture, loaded, record.model, inference)
        return inference


def _taken(outputs: Outputs, wants: Wants) -> Outputs:
    """A copy of what is wanted: the slot will be somebody else's."""
    evidence = outputs.evidence if wants & Wants.EVIDENCE else None
    return Outputs(
        outputs.logits.copy(),
        outputs.features.copy() if outputs.features is not None and wants & Wants.FEATURES else None,
        Evidence(evidence.labels.copy(), evidence.maps.copy()) if evidence else None,
    )


class View(Protocol):
    """How a model wants to see pictures."""

    @property
    def image_size(self) -> int: ...

    @property
    def crop_pct(self) -> float: ...


class Loaded(NamedTuple):
    """The upright picture's width and height, and its file's format, as Pillow calls it, if it was one."""

    size: tuple[int, int]
    format: str | None


class Crop:
    """What a model sees of a picture. To decode it for ``write`` takes ``need_bytes``.

    Raises:
        TooManyPixels: that is more than is allowed.
        ServiceError: as ``images.decode`` does; so does ``write``.
    """

    def __init__(self, picture: Picture, settings: Settings, view: View) -> None:
        self._view = view
        self._exact = settings.decode == "exact"
        enough = None if self._exact else enough_for(view.image_size, view.crop_pct)
        self._source = Opened(picture, settings.max_pixels, enough) if isinstance(picture, bytes) else picture
        self.need_bytes = self._source.need_bytes if isinstance(self._source, Opened) else 0
        if self.need_bytes > settings.decode_memory:
            raise TooManyPixels(
                f"To read the picture would take {self.need_bytes / 1e6:,.0f} MB of memory, "
                f"and {settings.decode_memory / 1e6:,.0f} MB are allowed; send it smaller."
            )

    def write(self, pixels: NDArray[np.uint8]) -> Loaded:
        """Write it into a slot's pixels."""
        size, part = self._view.image_size, self._view.crop_pct
        if not isinstance(self._source, Opened):
            image = Image.fromarray(self._source)
            crop(image, size, part, out=pixels)
            return Loaded(image.size, None)
        read = self._source.read()
        crop(read.image, size, part, out=pixels, within=None if self._exact else read.extent)
        return Loaded(read.size, read.format)


def _count(picture: Picture, loaded: Loaded, model: str, inference: Inference) -> None:
    metrics.picture_bytes.observe(len(picture) if isinstance(picture, bytes) else picture.nbytes)
    metrics.picture_pixels.observe(loaded.size[0] * loaded.size[1])
    metrics.picture_formats_of(loaded.format.lower() if loaded.format else "raw").inc()
    metrics.top1_score_of(model).observe(float(inference.scores.max()))
