"""The initial weights of the CNNs."""

import math

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draw the weights of a CNN from torch's global generator, in the way of the code of the paper's authors.

    The weights of a k x k convolution with n output channels are N(0, 2 / (k² n)), those of a dense layer with n
    outputs are uniform in ±1 / √n, and their biases are 0. BatchNorm keeps PyTorch's scale 1 and shift 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
