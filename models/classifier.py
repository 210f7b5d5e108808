"""A model ready to be asked: pictures in, scores out."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.folding import fold, lay_out_for_cpu
from models.labels import Label
from models.precision import Precision, resolve_precision
from models.prediction import Prediction, top
from models.preprocess import crop
from models.volo import Volo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Seen(NamedTuple):
    """What one forward makes of pictures: ``tokens`` [B, 1 + patches, C], ``logits`` [B, classes] float32."""

    tokens: Tensor
    logits: Tensor


class Classifier:
    """A model with all that is needed to name what is in a picture: its crop, its labels, its device.

    It takes the model over: folds it, converts it to the precision and lays it out as its device likes it.

    Raises:
        ValueError: ``crop_pct`` is not above 0, or leaves no pixel; the precision is not for this device.
    """

    def __init__(
        self,
        model: Volo,
        *,
        name: str,
        crop_pct: float,
        labels: Sequence[Label],
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        if crop_pct <= 0 or model.config.image_size / crop_pct < 1:
            raise ValueError(f"crop_pct {crop_pct:g} leaves nothing of {model.config.image_size} pixels")
        self.name = name
        self.image_size = model.config.image_size
        self.crop_pct = crop_pct
        self.labels = tuple(labels)
        self.device = torch.device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.model = _ready(model, self.device, self.dtype)

    def crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """The part of an RGB picture that the model sees: [S, S, 3]."""
        return crop(image, self.image_size, self.crop_pct)

    @torch.inference_mode()
    def see(self, pixels: Tensor) -> Seen:
        """Crops [B, S, S, 3] uint8 on any device, through the model on its own."""
        pictures = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # B, 3, S, S, channels last
        tokens = self.model.tokens(normalise(pictures).to(self.dtype))
        return Seen(tokens, self.model.heads(tokens).logits().float())

    @torch.inference_mode()
    def features(self, seen: Seen) -> Tensor:
        """What the model made of each picture before it named it, the class token: [B, C] float32."""
        return seen.tokens[:, 0].float()

    @torch.inference_mode()
    def evidence(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` likeliest classes, [B, K], and for each of them every patch's word, [B, K, G, G] float32."""
        classes = seen.logits.topk(count).indices
        return classes, self.model.evidence(seen.tokens, classes).float()

    def scores(self, pixels: Tensor) -> Tensor:
        """Crops [B, S, S, 3] uint8 on any device -> probabilities [B, classes] float32 on the model's."""
        return self.see(pixels).logits.softmax(dim=-1)

    def classify(self, image: Image.Image, top_k: int = 5, threshold: float = 0.0) -> list[Prediction]:
        """What is in an RGB picture, the likeliest first."""
        scores = self.scores(torch.from_numpy(self.crop(image))[None])[0].cpu().numpy()
        return top(scores, self.labels, top_k, threshold)


def _ready(model: Volo, device: torch.device, dtype: torch.dtype) -> Volo:
    model.eval().requires_grad_(False)
    fold(model)
    model.to(device, dtype)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # pictures come channels last, and stay so through every convolution
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's annotations
    if device.type == "cpu":
        lay_out_for_cpu(model)
    return model


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, S, S] in 0..255 -> what the models were trained on: ImageNet's mean 0 and deviation 1, float32."""
    mean, std = _statistics(pixels.device)
    return (pixels.float() - mean) / std


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each colour, in 0..255; once a device, because to bring them there makes it wait."""
    with torch.inference_mode(False):  # whoever asks first, training can use them too
        mean, std = (
            torch.tensor(figures, device=device).view(3, 1, 1) * 255 for figures in (IMAGENET_MEAN, IMAGENET_STD)
        )
    return mean, std
