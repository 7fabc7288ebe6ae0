"""What every network shares: the initialisation of the CNNs and the check of the data's shape."""

import math

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draw a CNN's weights as the paper's sources do: conv N(0, 2 / (k² C_out)), dense U(±1 / √n_out), biases 0.

    BatchNorm keeps PyTorch's scale 1 and shift 0.
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
