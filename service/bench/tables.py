"""What a model costs on a device, as `volo bench costs` has measured it and `volo plan` reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from service.costs import Costs
from service.terminal import saving

Seconds = Annotated[dict[PositiveInt, PositiveFloat], Field(min_length=1)]
"""Seconds of a run by its batch size."""


def kept(model: str) -> Path:
    """Where this user's table of a model is kept, whatever the device: the last one that was measured."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "volo" / "costs" / f"{called(model)}.json"


def called(source: str) -> str:
    """What a table calls a model, which may be named by its file."""
    return Path(source).name.partition(".")[0]


class UnusableTable(Exception):
    """A file that is no table of costs; the message says why."""


class CostTable(BaseModel):
    """One model on one machine.

    Attributes:
        machine: the GPU's name, or the processor's, whose cores are as many as lanes.
        lanes, ahead, padded: how the device takes runs; see ``batching.Queue`` and ``costs.Costs``.
        seconds_by_batch_size: the median run, while the device always has more to do.
        alone_seconds_by_batch_size: the median run on a device that was idle; empty where nobody has measured it.
        alone_threads: how many cores such a run keeps busy.
        spread: twenty means of runs relative to their size's median, from the fastest twentieth to the slowest.
        worker_cpu_seconds_per_picture, engine_cpu_seconds_per_picture: of an HTTP worker, with decoding, and of the
            engine's event loop.
        pictures: what was sent to measure these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    precision: str
    device: Literal["cpu", "cuda"]
    machine: str
    lanes: PositiveInt
    ahead: int = Field(ge=0)
    padded: bool
    seconds_by_batch_size: Seconds
    alone_seconds_by_batch_size: dict[PositiveInt, PositiveFloat] = {}
    alone_threads: PositiveInt = 1
    spread: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1)
    worker_cpu_seconds_per_picture: NonNegativeFloat
    engine_cpu_seconds_per_picture: NonNegativeFloat
    pictures: str
    measured_on: str
    command: str
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raise UnusableTable if the file is none, or cannot be read."""
        try:
            return cls.model_validate(json.loads(file.read_text()))
        except OSError as error:
            raise UnusableTable(f"{file} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UnusableTable(f"{file} is no table of costs: {where}: {first['msg']}") from None
        except ValueError as error:
            raise UnusableTable(f"{file} is no table of costs: {error}") from None

    def write(self, file: Path) -> None:
        """End the command if it cannot be written."""
        with saving(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.model_dump_json(indent=1) + "\n")

    @property
    def shares_cores(self) -> bool:
        """Whether the model computes on the cores that HTTP workers need too."""
        return self.device == "cpu"

    @property
    def capacity(self) -> float:
        """The most pictures a second that one device can do, whatever their latency."""
        picture_s = min(seconds / size for size, seconds in self.seconds_by_batch_size.items())
        if not self.shares_cores:
            return 1 / max(picture_s / self.lanes, self.engine_cpu_seconds_per_picture)
        around_s = self.worker_cpu_seconds_per_picture + self.engine_cpu_seconds_per_picture
        return self.lanes / (picture_s + around_s)

    def costs(self) -> Costs:
        """What the engine's queue is told after the warm-up; it learns on."""
        return Costs(self.seconds_by_batch_size, padded=self.padded)
