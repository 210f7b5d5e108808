"""Reads a checkpoint and puts it into a model, strictly: all of it fits, or an error says what does not."""

import argparse
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from models.labels import Label, LabelsError, parse_labels
from models.volo import VARIANTS, Volo, VoloConfig

State = dict[str, Tensor]

_REFUSED = re.compile(r"GLOBAL (\S+)")  # in torch's words: what a pickle would have had run
_LISTED_NAMES = 3  # of many wrong ones: the first few tell what kind of file this is


class WeightsError(ValueError):
    """A checkpoint that cannot be read, or is not this model's; the message says why."""


def load(path: Path, image_size: int | None = None, variant: str | None = None) -> tuple[str, Volo]:
    """The model in a checkpoint, in eval mode on the CPU, and the name of its variant.

    ``image_size`` in pixels: another than the checkpoint's resizes the position embedding. ``variant``: what it has to
    be of, if that matters.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is torn, no checkpoint, of no known variant, or of another one.
        ValueError: the variant cannot be built for ``image_size``.
    """
    state = read(path)
    try:
        found, config = infer_config(state)
        if variant not in (None, found):
            raise WeightsError(f"it holds {found}, not {variant}")
        return found, build(config if image_size is None else replace(config, image_size=image_size), state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read(path: Path) -> State:
    """The named tensors in a checkpoint, on the CPU: ``.safetensors``, or else what ``torch.save`` wrote.

    No code from the file is run: of a pickle only tensors and plain values are read (``weights_only``).

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is torn, or no checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        return unwrap(_unpack(path) if path.suffix == ".safetensors" else _unpickle(path))
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        if refused := _REFUSED.search(str(error)):
            raise WeightsError(f"{path} holds more than tensors and plain values: {refused[1]}") from error
        raise WeightsError(f"{path} is torn, or no checkpoint") from error
    except Exception as error:  # a torn pickle raises nearly anything: EOFError, OSError, even UserWarning
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is torn, or no checkpoint: {reason}") from error


def _unpack(path: Path) -> State:
    # not by a mapping: whoever cut the file short then would end our process (SIGBUS)
    return load_file(path, backend="pread")


def _unpickle(path: Path) -> Any:
    # training checkpoints carry the command line they were made with, a bare holder of plain values
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_labels(path: Path) -> tuple[Label, ...] | None:
    """The class names that travel with weights, as JSON under ``labels`` in a safetensors file's metadata.

    None where there are none.

    Raises:
        LabelsError: what is there is no list of names.
    """
    written = _notes(path).get("labels")
    try:
        return None if written is None else parse_labels(json.loads(written))
    except ValueError as error:  # bad JSON, bad names
        raise LabelsError(f"{path}: {error}") from error


def read_crop_pct(path: Path) -> float | None:
    """The crop that a model was trained for, which travels with weights as their class names do."""
    written = _notes(path).get("crop_pct")
    return None if written is None else float(written)


def _notes(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt", backend="pread") as file:
        return file.metadata() or {}


def unwrap(checkpoint: Any) -> State:
    """A checkpoint's state dict: out of its container (averaged weights first), without ``module.`` prefixes.

    Raises:
        WeightsError: there is none.
    """
    if not isinstance(checkpoint, Mapping):
        raise WeightsError("it holds no state dict")
    for container in ("state_dict_ema", "state_dict"):
        if isinstance(checkpoint.get(container), Mapping):
            return unwrap(checkpoint[container])
    if not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise WeightsError("it holds no state dict")
    return {str(name).removeprefix("module."): tensor for name, tensor in checkpoint.items()}


def infer_config(state: State) -> tuple[str, VoloConfig]:
    """The variant these weights belong to, and its config at their image size and number of classes.

    Shapes do not tell the number of attention heads: only what is in ``VARIANTS`` can be recognised.

    Raises:
        WeightsError: these are no VOLO's weights, or no known variant's.
    """
    try:
        anatomy = _anatomy(state)
        _, height, width, _ = state["pos_embed"].shape
        num_classes, _ = state["head.weight"].shape
    except KeyError as error:
        raise WeightsError(f"no VOLO: it has no {error}") from error
    except ValueError as error:  # a shape of another rank
        raise WeightsError(f"no VOLO: {error}") from error
    if height != width:
        raise WeightsError(f"pos_embed is a grid of {height} by {width}, only squares are known")
    for variant, config in VARIANTS.items():
        if all(getattr(config, field) == value for field, value in anatomy.items()):
            return variant, replace(config, image_size=height * config.token_size, num_classes=num_classes)
    raise WeightsError(f"no variant of VOLO is built like this: {anatomy}")


def _anatomy(state: State) -> dict[str, Any]:
    """The fields of VoloConfig that names and shapes tell, whatever the image size and the classes."""
    first_dim, stem_width, half_patch, _ = state["patch_embed.proj.weight"].shape
    dim, _, _, _ = state["network.1.proj.weight"].shape
    hidden, _ = state["network.0.0.mlp.fc1.weight"].shape
    return {
        "layers": tuple(_depth(state, f"network.{stage}.") for stage in (0, 2, 3, 4)),  # 1 is the downsampling
        "dims": (first_dim, dim, dim, dim),
        "mlp_ratio": hidden / first_dim,
        "stem_width": stem_width,
        "patch_size": 2 * half_patch,
        "class_attention_layers": _depth(state, "post_network."),
    }


def _depth(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def build(config: VoloConfig, state: State) -> Volo:
    """A model of that config with those weights, in eval mode on the CPU.

    Raises:
        WeightsError: the weights are another model's.
    """
    with torch.device("meta"):  # random weights would only cost time
        model = Volo(config)
    model.to_empty(device="cpu")
    load_state_dict(model, state)
    return model.eval()


def load_state_dict(model: Volo, checkpoint: Mapping[str, Any]) -> None:
    """Puts a checkpoint's weights into a model, converted to the model's precision.

    The position embedding is resized to the model's image size. All else has to fit exactly; if it does not,
    the model is left as it was.

    Raises:
        WeightsError: a name is missing or unexpected, a shape or type is another, a value is not finite.
    """
    state, wanted = unwrap(checkpoint), model.state_dict()
    _check_names(state, wanted)
    _check_values(state, wanted)
    if _differ_in_grid(state["pos_embed"], wanted["pos_embed"]):
        state["pos_embed"] = resize_position(state["pos_embed"], model.config.grid_size)
    _check_shapes(state, wanted)
    model.load_state_dict(state)


def _check_names(state: State, wanted: State) -> None:
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    complaints = []
    if missing:
        complaints.append(f"missing {_listing(name for name in wanted if name in missing)}")
    if unexpected:
        complaints.append(f"unexpected {_listing(name for name in state if name in unexpected)}")
    if complaints:
        raise WeightsError("; ".join(complaints))


def _listing(names: Iterable[str]) -> str:
    first, rest = (every := list(names))[:_LISTED_NAMES], len(every) - _LISTED_NAMES
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _check_values(state: State, wanted: State) -> None:
    for name, tensor in wanted.items():
        if not tensor.is_floating_point():  # BatchNorm's counter, which inference never reads
            continue
        if not state[name].is_floating_point():
            raise WeightsError(f"{name} holds {state[name].dtype}, not floating-point numbers")
        if not state[name].to(tensor.dtype).isfinite().all():
            raise WeightsError(f"{name} holds values that are not finite")


def _check_shapes(state: State, wanted: State) -> None:
    for name, tensor in wanted.items():
        found, fitting = list(state[name].shape), list(tensor.shape)
        if found == fitting:
            continue
        if name.startswith(("head.", "aux_head.")) and found[1:] == fitting[1:]:
            raise WeightsError(f"{name} has {found[0]} classes, the model has {fitting[0]}")
        raise WeightsError(f"{name} has the shape {found}, the model's has {fitting}")


def _differ_in_grid(position: Tensor, other: Tensor) -> bool:
    return position.ndim == 4 and position.shape != other.shape and position.shape[-1] == other.shape[-1]


def resize_position(position: Tensor, grid: int) -> Tensor:
    """A position embedding [1, h, w, C] for another grid: [1, grid, grid, C], float32.

    Bicubic and not antialiased, as in the authors' ``resize_pos_embed_4d`` (github.com/sail-sg/volo).
    """
    channels_first = position.float().permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size=(grid, grid), mode="bicubic").permute(0, 2, 3, 1)
