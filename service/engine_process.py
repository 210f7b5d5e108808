"""An engine's process: the model on its device, warm, and an engine that serves it until told to stop."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Any

import uvloop
from setproctitle import setproctitle

from models.allocator import keep_freed_memory
from models.classifier import Classifier
from service import metrics
from service.batching import Queue
from service.costs import Costs
from service.device import Device, DeviceFault, DeviceMissing, OutOfMemory, load_classifier
from service.engine import Engine
from service.lifeline import report_alive, report_ready, report_refusal
from service.logs import logger
from service.multiprocess import NoRoom
from service.process import REFUSED
from service.settings import Settings, cores
from service.wire import ModelCard


def main(orders: dict[str, Any]) -> None:
    """Load the model, warm it up, and serve until told to stop; ``orders`` are the parent's.

    Raises:
        SystemExit: it cannot be done as it is set up, or the device is of no use any more; the log says why.
    """
    settings = Settings.model_validate(orders["settings"])
    try:
        device, card, queue = prepare(settings, orders["name"])
    except (DeviceMissing, DeviceFault, OutOfMemory, OSError, ValueError) as error:
        logger.critical("cannot start", reason=str(error))
        report_refusal(str(error))
        # a new process may find the room that another one still holds
        raise SystemExit(1 if isinstance(error, (OutOfMemory, NoRoom)) else REFUSED) from None
    setproctitle(f"volo: engine {card.model} {card.device}")
    listener = socket.socket(fileno=orders["listener"])
    report_ready(card.device)
    try:
        run(Engine(device, card, queue, report_alive), listener, settings.timeout_s)
    except ExceptionGroup:
        logger.critical("cannot go on", exc_info=True)
        os._exit(1)  # an ordinary end would wait for a thread whose run does not come back


def prepare(settings: Settings, name: str) -> tuple[Device, ModelCard, Queue]:
    """The model on its device, warm; what workers are told of it; and an empty queue that knows its costs."""
    started_s = time.monotonic()
    classifier = load_classifier(settings)
    loaded_s = time.monotonic()
    if classifier.device.type == "cpu":
        keep_freed_memory()
    device = Device(classifier, settings.max_batch, patience_s=settings.timeout_s / 4, cores=cores())
    costs = Costs(device.warm_up(rounds=3), padded=device.padded)
    card = _card(name, classifier)
    metrics.model_load_seconds.labels(name).set(loaded_s - started_s)
    metrics.model_warm_up_seconds.labels(name).set(time.monotonic() - loaded_s)
    logger.info(
        "model ready",
        model=card.model,
        device=card.device,
        in_s=round(time.monotonic() - started_s, 2),
        cost_ms={size: round(costs.seconds(size) * 1e3, 1) for size in costs.ladder},
    )
    return device, card, Queue(settings.queue_limit, costs, device.lanes, device.ahead)


def _card(name: str, classifier: Classifier) -> ModelCard:
    config = classifier.model.config
    return ModelCard(
        model=name,
        device=str(classifier.device),
        image_size=classifier.image_size,
        crop_pct=classifier.crop_pct,
        grid_size=config.grid_size,
        feature_size=config.dims[-1],
        labels=classifier.labels,
    )


def run(engine: Engine, listener: socket.socket, patience_s: float) -> None:
    """Serve until SIGTERM, and then until the workers have left, or for so long. Raise as ``Engine.serve`` does."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_terminated(engine, listener, patience_s))


async def _until_terminated(engine: Engine, listener: socket.socket, patience_s: float) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def retire() -> None:
        engine.retire()
        loop.call_later(patience_s, task.cancel)

    loop.add_signal_handler(signal.SIGTERM, retire)
    with contextlib.suppress(asyncio.CancelledError):
        await engine.serve(listener)
