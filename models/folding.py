"""Rewrites a trained model so that its forward does less and says the same, up to rounding."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.outlook import OutlookAttention
from models.volo import Volo


@torch.no_grad()
def fold(model: Volo) -> None:
    """Fold what is constant in inference into the weights, in place; a folded model stays as it is.

    BatchNorm goes into the convolution before it, outlook attention's scale into the layer that it multiplies.

    Raises:
        ValueError: the model is in training mode, where neither is constant.
    """
    if model.training:
        raise ValueError("only a model in eval mode can be folded")
    model.patch_embed.conv = _without_batch_norm(model.patch_embed.conv)
    for module in model.modules():
        if isinstance(module, OutlookAttention):
            module.attn.weight.mul_(module.scale)
            module.attn.bias.mul_(module.scale)
            module.scale = 1.0


def _without_batch_norm(layers: nn.Sequential) -> nn.Sequential:
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = folded.pop()
            assert isinstance(convolution, nn.Conv2d)
            layer = fuse_conv_bn_eval(convolution, layer)
        folded.append(layer)
    return nn.Sequential(*folded)


@torch.no_grad()
def lay_out_for_cpu(model: nn.Module) -> None:
    """Store linear layers' weights input first: a product with few rows then needs no transposed reading of them."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.t().contiguous().t(), module.weight.requires_grad)
