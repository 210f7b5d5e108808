"""What a training run is to do, as data."""

import dataclasses
import math

from models.volo import VARIANTS, VoloConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything the result depends on, besides the pictures."""

    variant: str = "volo_tiny"
    stages: tuple[tuple[int, int], ...] = ((32, 60), (48, 60), (64, 180))
    """Picture size and number of epochs, one after the other."""
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Share of all steps."""
    augment: float = 1.0
    label_smoothing: float = 0.1
    ema_decay: float = 0.9995
    seed: int = 0

    def config(self, size: int) -> VoloConfig:
        """The variant for pictures of a size.

        Raises:
            ValueError: there is no such variant, or not for this size.
        """
        if self.variant not in VARIANTS:
            raise ValueError(f"no variant is called {self.variant!r}; there are {', '.join(VARIANTS)}")
        return dataclasses.replace(VARIANTS[self.variant], image_size=size)

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.stages)

    def size(self, epoch: int) -> int:
        """The size of pictures in an epoch."""
        return [size for size, epochs in self.stages for _ in range(epochs)][epoch]

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when ``progress`` of all steps (0 to 1) are done."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
