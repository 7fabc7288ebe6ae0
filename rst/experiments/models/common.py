"""What several networks share: the initial weights of the CNNs, and a check of the data's numbers."""

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


def check_data(num_classes: int, in_channels: int) -> None:
    """Raise ValueError unless there is at least one class and one input channel."""
    if num_classes < 1:
        raise ValueError(f"model: dataset.num_classes must be at least 1, got {num_classes}.")
    if in_channels < 1:
        raise ValueError(f"model: dataset.channels must be at least 1, got {in_channels}.")
