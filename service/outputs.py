"""What a run of the model gives, as arrays: always the logits, and more on request."""

from enum import IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EVIDENCE_LABELS = 10
"""For so many of the likeliest labels there is evidence."""


class Wants(IntFlag):
    """What is wanted beside the logits."""

    NONE = 0
    FEATURES = 1
    EVIDENCE = 2


class Evidence(NamedTuple):
    """Where the likeliest labels are: ``labels`` [..., K] int32, the likeliest first, and how loudly each patch speaks
    for each of them, ``maps`` [..., K, G, G] float32."""

    labels: NDArray[np.int32]
    maps: NDArray[np.float32]


class Outputs(NamedTuple):
    """Of a batch or, without the first axis, of one picture: ``logits`` [B, classes] float32, and if they were wanted
    ``features`` [B, C] float32, the class token before the head, and the evidence."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    evidence: Evidence | None = None

    def of(self, place: int) -> "Outputs":
        """One picture's."""
        return Outputs(
            self.logits[place],
            None if self.features is None else self.features[place],
            None if self.evidence is None else Evidence(self.evidence.labels[place], self.evidence.maps[place]),
        )
