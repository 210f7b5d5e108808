"""What a VOLO weighs: its parameters, and the multiply-adds of one picture.

Counted are all matrix products and convolutions; normalisation, softmax, activations and pooling are left
out, as in published figures.
"""

from dataclasses import dataclass

import torch

from models.volo import Volo, VoloConfig


@dataclass(frozen=True)
class Cost:
    """Learned parameters, and multiply-adds for one picture."""

    parameters: int
    multiply_adds: int


def count(config: VoloConfig) -> Cost:
    """What the model of that config costs."""
    with torch.device("meta"):  # names and shapes only: neither time nor memory
        model = Volo(config)
    return Cost(sum(parameter.numel() for parameter in model.parameters()), multiply_adds(config))


def multiply_adds(config: VoloConfig) -> int:
    """Multiply-adds for one picture."""
    outlookers, *transformers = config.layers
    return (
        _stem(config)
        + outlookers * _outlooker(config)
        + _downsampling(config)
        + sum(transformers) * _transformer(config)
        + config.class_attention_layers * _class_attention(config)
        + _heads(config)
    )


def _patches(config: VoloConfig) -> int:
    return (config.image_size // config.patch_size) ** 2


def _tokens(config: VoloConfig) -> int:
    return config.grid_size**2


def _mlp(config: VoloConfig, dim: int) -> int:
    return 2 * dim * int(dim * config.mlp_ratio)


def _stem(config: VoloConfig) -> int:
    width, pixels = config.stem_width, (config.image_size // 2) ** 2
    convolutions = pixels * width * (3 * 7**2 + 2 * width * 3**2)
    return convolutions + _patches(config) * width * (config.patch_size // 2) ** 2 * config.dims[0]


def _outlooker(config: VoloConfig) -> int:
    dim, heads = config.dims[0], config.heads[0]
    value_and_projection = 2 * dim**2
    weights_and_weighing = 3**4 * (heads * dim + dim)  # of a 3 x 3 window, and there are as many as tokens
    return _patches(config) * (value_and_projection + _mlp(config, dim)) + _tokens(config) * weights_and_weighing


def _downsampling(config: VoloConfig) -> int:
    return _tokens(config) * 2**2 * config.dims[0] * config.dims[1]


def _transformer(config: VoloConfig) -> int:
    tokens, dim = _tokens(config), config.dims[1]
    return tokens * (4 * dim**2 + _mlp(config, dim)) + 2 * tokens**2 * dim


def _class_attention(config: VoloConfig) -> int:
    tokens, dim = 1 + _tokens(config), config.dims[3]
    return tokens * 2 * dim**2 + 2 * dim**2 + 2 * tokens * dim + _mlp(config, dim)


def _heads(config: VoloConfig) -> int:
    return (1 + _tokens(config)) * config.dims[3] * config.num_classes
