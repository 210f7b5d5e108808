"""The whole model against reference outputs computed in float64 by an independent implementation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_weights import fill, noise, outputs
from torch import Tensor, nn

from models.volo import VARIANTS, Volo, VoloConfig

EXPECTED = outputs("volo.npz")
CONFIGS = {
    "tiny_64": VARIANTS["volo_tiny"],
    "d1_224": VARIANTS["volo_d1"],
    "d1_384": replace(VARIANTS["volo_d1"], image_size=384),
    "d2_224": VARIANTS["volo_d2"],
}
SMALL = replace(VARIANTS["volo_nano"], image_size=32, num_classes=5)


def golden_model(config: VoloConfig) -> Volo:
    with torch.device("meta"):
        model = Volo(config)
    fill(model.to_empty(device="cpu"))
    return model.eval()


def outputs_of(model: Volo, x: Tensor) -> dict[str, Tensor]:
    """What each part of the model gave on the way to the logits, under the names of the golden data."""
    parts: dict[str, nn.Module] = {
        "logits": model,
        "cls_logits": model.head,
        "aux": model.aux_head,
        "patch_embed": model.patch_embed,
        "outlooker": model.network[0],
        "tokens": model.network[-1],
    }
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, given, output: seen.update({name: output})

    for name, part in parts.items():
        part.register_forward_hook(keep(name))
    with torch.inference_mode():
        model(x)
    return seen


def sampled(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "logits": seen["logits"],
        "cls_logits": seen["cls_logits"],
        "aux_sample": seen["aux"][:, ::17, ::50],
        "patch_embed_sample": seen["patch_embed"][:, ::7, ::7, ::16],
        "outlooker_sample": seen["outlooker"][:, ::7, ::7, ::16],
        "tokens_sample": seen["tokens"].flatten(1, 2)[:, ::17, ::16],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_computes_what_the_reference_does(name: str) -> None:
    config = CONFIGS[name]
    wanted = {key.partition("/")[2]: value for key, value in EXPECTED.items() if key.startswith(f"{name}/")}
    x = noise(config.image_size, len(wanted["logits"]), 3, config.image_size, config.image_size).float()
    # values reach 4 in the logits and 25 on the way; float32 keeps seven digits of them
    torch.testing.assert_close(sampled(outputs_of(golden_model(config), x)), wanted, atol=2e-5, rtol=2e-5)


def test_one_picture_alone_gives_what_it_gives_in_a_batch_of_eight() -> None:
    model, pictures = golden_model(VARIANTS["volo_tiny"]), noise(1, 8, 3, 64, 64).float()
    with torch.inference_mode():
        alone = torch.cat([model(picture[None]) for picture in pictures])
        torch.testing.assert_close(model(pictures), alone, atol=1e-5, rtol=1e-5)


def test_the_logits_are_the_class_tokens_and_half_of_the_loudest_patchs() -> None:
    model, x = golden_model(SMALL), noise(2, 3, 3, 32, 32).float()
    with torch.inference_mode():
        heads = model.heads(model.tokens(x))
        assert (heads.cls.shape, heads.aux.shape) == ((3, 5), (3, 16, 5))
        torch.testing.assert_close(model(x), heads.cls + 0.5 * heads.aux.max(dim=1).values, atol=0, rtol=0)


def test_every_parameter_takes_part_in_the_answer() -> None:
    model = golden_model(SMALL).train()
    heads = model.heads(model.tokens(noise(3, 2, 3, 32, 32).float()))
    loss = heads.cls.square().sum() + heads.aux.square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert [name for (name, _), slope in zip(model.named_parameters(), gradients, strict=True) if not slope.any()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 225}, "image size 225 is not a multiple of 8 pixels"),
        ({"image_size": 0}, "image size 0 is not a multiple of 8 pixels"),
        ({"image_size": -32}, "image size -32 is not a multiple of 8 pixels"),
        ({"num_classes": 0}, "a model of 0 classes"),
        ({"dims": (64, 160, 160, 320)}, "stages 2 to 4 share one width"),
        ({"heads": (2, 5, 5, 3)}, "are not multiples of heads"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
