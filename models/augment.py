"""Augmentation in batches, on whatever device the pictures are: every picture of a batch gets its own draw."""

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixed(NamedTuple):
    """A batch of mixed pictures, and what each is made of.

    ``pictures`` [B, 3, S, S] float in 0..255; picture i holds ``share[i]`` [grid, grid] of picture ``partner[i]`` in
    each of its patches, and the rest of itself.
    """

    pictures: Tensor
    partner: Tensor
    share: Tensor


class Augment:
    """Random crop, flip, colour, erasing, and mixing by mixup or cutmix.

    Args:
        strength: 0 leaves pictures as they are but for flips, 1 suits some hundreds of epochs.
        seed: of every draw to come.
        device: where the pictures are.
    """

    def __init__(self, strength: float, seed: int, device: torch.device) -> None:
        self.strength = strength
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.coin = random.Random(seed)  # for what the host decides: a device asked for a number makes it wait

    def __call__(self, pictures: Tensor, grid: int) -> Mixed:
        """Augment pictures [B, 3, S, S] uint8, to be seen by a model with ``grid`` patches a side."""
        x = self._colour(self._crop(pictures.float()))
        return self._mix(self._erase(x), grid)

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def _crop(self, x: Tensor) -> Tensor:
        """A random part of 1 - 0.65 strength to all of the area, aspect 3/4 to 4/3, flipped half of the time."""
        batch = len(x)
        side = self._uniform(batch, low=1 - 0.65 * self.strength).sqrt()
        aspect = (self._uniform(batch, low=-1) * 0.2877 * self.strength).exp().sqrt()  # ln(4/3) = 0.2877
        width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
        theta = x.new_zeros(batch, 2, 3)
        theta[:, 0, 0] = width * (self._uniform(batch) < 0.5).float().mul(2).sub(1)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (1 - width) * self._uniform(batch, low=-1)
        theta[:, 1, 2] = (1 - height) * self._uniform(batch, low=-1)
        places = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _colour(self, x: Tensor) -> Tensor:
        """Brightness, contrast and saturation by factors around 1; grey now and then."""
        reach = 0.4 * self.strength
        brightness, contrast, saturation = self._uniform(3, len(x), 1, 1, 1, low=1 - reach, high=1 + reach)
        saturation = saturation * (self._uniform(len(x), 1, 1, 1) >= 0.1 * self.strength)
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * saturation
        level = grey.mean(dim=(2, 3), keepdim=True)
        return ((x - level) * contrast + level * brightness).clamp(0, 255)

    def _erase(self, x: Tensor) -> Tensor:
        """Noise over a box, in 0.25 strength of the pictures."""
        area = self._uniform(len(x), low=0.02, high=0.3)
        area = area * (self._uniform(len(x)) < 0.25 * self.strength)
        noise = torch.randn(x.shape, generator=self.generator, device=self.device) * 64 + 128
        return torch.where(self._boxes(area, x.shape[-1])[:, None], noise.clamp(0, 255), x)

    def _mix(self, x: Tensor, grid: int) -> Mixed:
        """Cutmix along patch borders or mixup with a partner; 0.8 strength of the batches are mixed."""
        partner = torch.randperm(len(x), generator=self.generator, device=self.device)
        share = self._share(len(x), grid)
        pixels = share.repeat_interleave(x.shape[-1] // grid, 1).repeat_interleave(x.shape[-1] // grid, 2)[:, None]
        return Mixed(torch.lerp(x, x[partner], pixels), partner, share)

    def _share(self, batch: int, grid: int) -> Tensor:
        draw = self.coin.random()
        if draw < 0.5 * self.strength:
            return self._boxes(self._uniform(batch), grid).float()
        if draw < 0.8 * self.strength:
            # the smaller part of two, rather small than even: much as Beta(0.8, 0.8) folded at one half
            return (0.5 * self._uniform(batch).pow(1.25)).view(-1, 1, 1).expand(batch, grid, grid)
        return torch.zeros(batch, grid, grid, device=self.device)

    def _boxes(self, area: Tensor, size: int) -> Tensor:
        """One random box a picture that covers about ``area`` [B] of it, as a mask [B, size, size]."""
        places = torch.arange(size, device=self.device) + 0.5
        side = area.sqrt()[:, None] * size
        rows, columns = ((places - self._uniform(len(area), 1) * size).abs() < side / 2 for _ in range(2))
        return rows[:, :, None] & columns[:, None, :]
