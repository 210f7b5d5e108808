"""The recipe that made the embedded weights, and makes others like them.

    python -m models.train SHARDS_OR_FOLDERS... --out runs/mine

AdamW with warm-up and a cosine, growing pictures, mixing and label smoothing, an average of the weights (EMA); the
auxiliary head learns every patch's own label, as in token labelling (arXiv 2104.10858). A held-out slice of the
training pictures measures progress and calibrates the scores. Stopped and started again, it goes on at the last epoch.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.allocator import keep_freed_memory
from models.augment import Augment, Mixed
from models.classifier import normalise
from models.dataset import Dataset, class_names, load_dataset
from models.labels import Label, LabelsError, load_labels, parse_labels
from models.precision import native_bfloat16
from models.recipe import Recipe
from models.volo import Heads, Volo
from models.weights import resize_position

HELD_OUT = 2500
"""Pictures that are not trained on; of few pictures a tenth."""


class Trainer:
    """A model, its average and its optimizer, somewhere along a recipe."""

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.epoch = 0
        config = dataclasses.replace(recipe.config(recipe.size(0)), num_classes=num_classes)
        self._adopt(Volo(config), None)

    def _adopt(self, model: Volo, ema_state: dict[str, Tensor] | None) -> None:
        # torch's own annotations do not know memory_format
        self.model: Volo = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema_decay), use_buffers=True)
        if ema_state is not None:
            self.ema.load_state_dict(ema_state)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1]},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = AdamW(
            groups,
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )

    def grow(self, size: int) -> None:
        """Go on with pictures of another size; the optimizer starts afresh."""
        if size == self.model.config.image_size:
            return
        config = dataclasses.replace(self.model.config, image_size=size)
        grown, ema_state = Volo(config), self.ema.state_dict()
        grown.load_state_dict(resized(self.model.state_dict(), "pos_embed", config.grid_size))
        self._adopt(grown, resized(ema_state, "module.pos_embed", config.grid_size))

    def train_epoch(self, dataset: Dataset) -> float:
        """One pass over the pictures, already of this epoch's size. Returns the mean loss."""
        self.model.train()
        recipe, seed = self.recipe, self.recipe.seed * 100_003 + self.epoch
        augment = Augment(recipe.augment, seed, self.device)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        batches = order.to(self.device).split(recipe.batch_size)
        batches = batches[: max(1, len(order) // recipe.batch_size)]  # full ones, if there are any
        total = torch.zeros((), device=self.device)
        title = f"epoch {self.epoch + 1}/{recipe.epochs} at {self.model.config.image_size}"
        for step, indices in enumerate(tqdm(batches, title, unit="batch", mininterval=5)):
            rate = recipe.learning_rate_at((self.epoch + step / len(batches)) / recipe.epochs)
            mixed = augment(dataset.pictures[indices], self.model.config.grid_size)
            total += self._step(mixed, dataset.labels[indices], rate)
        self.epoch += 1
        return float(total) / len(batches)

    def _step(self, mixed: Mixed, labels: Tensor, learning_rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        pixels = normalise(mixed.pictures).contiguous(memory_format=torch.channels_last)
        with autocast(self.device):
            heads = self.model.heads(self.model.tokens(pixels))
        loss = mixed_loss(heads, mixed, labels, self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def logits(self, dataset: Dataset) -> Tensor:
        """What the averaged model says of pictures already of its size: [N, classes]."""
        self.ema.eval()
        with torch.inference_mode():
            return torch.cat([self.ema(normalise(pictures)) for pictures in dataset.pictures.split(256)])

    def checkpoint(self) -> dict[str, object]:
        return {
            "epoch": self.epoch,
            "image_size": self.model.config.image_size,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint was written."""
        checkpoint = torch.load(path, map_location=self.device, weights_only=True)
        self.grow(checkpoint["image_size"])
        self.epoch = checkpoint["epoch"]
        self.model.load_state_dict(checkpoint["model"])
        self.ema.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])


def mixed_loss(heads: Heads, mixed: Mixed, labels: Tensor, smoothing: float) -> Tensor:
    """Class head against the picture's labels, and half of the same for the auxiliary head, patch by patch.

    heads of [B, classes] and [B, patches, classes], labels [B] of the unmixed pictures -> scalar.
    """
    share = mixed.share.flatten(1)  # B, patches
    own = labels[:, None].expand(-1, share.shape[1])  # B, patches
    other = labels[mixed.partner][:, None].expand(-1, share.shape[1])  # B, patches
    patches = _shared_cross_entropy(heads.aux.float().transpose(1, 2), own, other, share, smoothing)
    cls = _shared_cross_entropy(heads.cls.float(), labels, labels[mixed.partner], share.mean(1), smoothing)
    return cls + 0.5 * patches


def _shared_cross_entropy(logits: Tensor, own: Tensor, other: Tensor, share: Tensor, smoothing: float) -> Tensor:
    of_own = F.cross_entropy(logits, own, reduction="none", label_smoothing=smoothing)
    of_other = F.cross_entropy(logits, other, reduction="none", label_smoothing=smoothing)
    return torch.lerp(of_own, of_other, share).mean()


def resized(state: dict[str, Tensor], name: str, grid: int) -> dict[str, Tensor]:
    """The same state with the position embedding ``name`` resized to another grid."""
    return {**state, name: resize_position(state[name], grid)}


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it natively."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device))


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits [N, classes] that makes their softmax most likely (arXiv 1706.04599)."""
    candidates = torch.linspace(0.3, 3, 271).tolist()
    losses = [float(F.cross_entropy(logits / candidate, labels)) for candidate in candidates]
    return candidates[losses.index(min(losses))]


def calibrated(state: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    """The same state with the temperature folded into both heads, as float16."""
    heads = ("head.weight", "head.bias", "aux_head.weight", "aux_head.bias")
    scaled = {name: value / by if name in heads else value for name, value in state.items()}
    return {name: value.half() if value.is_floating_point() else value for name, value in scaled.items()}


def export(trainer: Trainer, by: float, labels: Sequence[Label] | None, path: Path) -> None:
    """Write the averaged model, calibrated by a temperature, as float16 safetensors with its class names."""
    state = {
        name.removeprefix("module."): value.cpu().contiguous()
        for name, value in trainer.ema.state_dict().items()
        if name != "n_averaged"
    }
    notes = {
        "variant": trainer.recipe.variant,
        "crop_pct": "1.0",  # as load_dataset crops
        "epochs": str(trainer.epoch),
        "temperature": f"{by:.2f}",
        "recipe": json.dumps(dataclasses.asdict(trainer.recipe)),
    }
    if labels is not None:
        notes["labels"] = json.dumps([dataclasses.asdict(label) for label in labels])
    unfinished = path.with_suffix(".tmp")
    save_file(calibrated(state, by), unfinished, metadata=notes)
    unfinished.chmod(0o644)  # safetensors writes files that nobody else may read
    unfinished.replace(path)


def class_labels(sources: list[Path], file: Path | None) -> tuple[Label, ...] | None:
    """What the classes are called: by the file, or else by the folders; None where neither says it."""
    if file is not None:
        return load_labels(file)
    names = class_names(sources)
    return None if names is None else parse_labels(names)


def count_classes(full: Dataset, labels: Sequence[Label] | None) -> int:
    """As many as have names, or else as many as have pictures.

    Raises:
        LabelsError: there are fewer names than classes.
    """
    seen = int(full.labels.max()) + 1
    if labels is not None and len(labels) < seen:
        raise LabelsError(f"the pictures are of {seen} classes, and only {len(labels)} have names")
    return seen if labels is None else len(labels)


def train(recipe: Recipe, sources: list[Path], out: Path, device: torch.device, label_file: Path | None = None) -> None:
    """Train by the recipe, with a checkpoint and weights in ``out`` after every epoch.

    Raises:
        ValueError: the recipe or the pictures do not make sense; the message says why.
    """
    keep_freed_memory()
    for size, _ in recipe.stages:  # now, not when the first of its epochs comes
        recipe.config(size)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    labels = class_labels(sources, label_file)
    full = load_dataset(sources, max(size for size, _ in recipe.stages), labels).to(device)
    pictures, held_out = full.split(min(HELD_OUT, math.ceil(len(full) / 10)), recipe.seed)
    trainer = Trainer(recipe, count_classes(full, labels), device)
    if checkpoint.exists():
        trainer.resume(checkpoint)
    while trainer.epoch < recipe.epochs:
        size = recipe.size(trainer.epoch)
        trainer.grow(size)
        started = time.monotonic()
        loss = trainer.train_epoch(pictures.at_size(size))
        held = held_out.at_size(size)
        logits = trainer.logits(held)
        correct = (logits.argmax(1) == held.labels).float().mean()
        print(
            f"epoch {trainer.epoch} size {size} loss {loss:.3f} held-out top-1 {correct:.2%} "
            f"in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        # first: a run stopped between the two repeats the epoch, rather than end without its last weights
        export(trainer, temperature(logits, held.labels), labels, out / "weights.safetensors")
        torch.save(trainer.checkpoint(), checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)


def _stages(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(size), int(epochs)) for size, epochs in (part.split(":") for part in text.split(",")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train a VOLO on labelled pictures.")
    parser.add_argument("sources", nargs="+", type=Path, help="shards (.npz) or folders with one folder a class")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoint and weights go")
    parser.add_argument("--labels", type=Path, help="the classes' names, to be saved with the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in dataclasses.fields(Recipe):
        kind = _stages if field.name == "stages" else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    return parser.parse_args()


def _main() -> None:
    given = vars(_arguments())
    sources, out, labels, device = (given.pop(name) for name in ("sources", "out", "labels", "device"))
    train(Recipe(**given), sources, out, torch.device(device), labels)


if __name__ == "__main__":
    _main()
