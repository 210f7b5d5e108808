import pytest
import torch
from torch import nn

import models
from models.folding import fold, lay_out_for_cpu
from models.volo import VARIANTS, Volo


def trained_looking(image_size: int = 32) -> Volo:
    """A small model whose BatchNorm has seen something: folding a fresh one would prove nothing."""
    torch.manual_seed(0)
    model = models.create_model(VARIANTS["volo_nano"], image_size=image_size, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]  # it tracks its statistics
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def test_a_folded_model_says_what_it_said_in_fewer_steps() -> None:
    model, pictures = trained_looking(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(pictures)
        fold(model)
        lay_out_for_cpu(model)
        torch.testing.assert_close(model(pictures), before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_folding_twice_is_folding_once() -> None:
    model = trained_looking()
    fold(model)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    twice = model.state_dict()
    assert once.keys() == twice.keys()
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())


def test_a_model_that_still_learns_is_not_folded() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold(trained_looking().train())
