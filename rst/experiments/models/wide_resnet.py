"""WideResNet (Zagoruyko and Komodakis, 2016): a shallow residual network with wide layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from rst.experiments.models.common import initialise


class WideResNet(nn.Module):
    """A 3x3 stem of 16 filters, three groups of (depth - 4) / 6 pre-activation blocks, and a global average pool.

    The groups have 16, 32 and 64 times ``widen_factor`` channels, and the second and the third start with stride 2.
    Maps images [N, in_channels, H, W] of any size to logits [N, num_classes]. Where a block changes the shape, its
    shortcut is a 1x1 convolution, as in the paper that defines the network; the authors of RST average-pool the
    shortcut and pad it with zero channels.

    Args:
        depth: number of layers, 6 n + 4 with n >= 1.
        widen_factor: at least 1.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        ValueError: ``depth`` is another number.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"model.depth of a WideResNet must be 10, 16, 22, 28, ... (6n + 4), got {depth}.")
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width_in = 16
        for width, group_stride in zip(widths, (1, 2, 2), strict=True):
            for index in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(width_in, width, group_stride if index == 0 else 1))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width_in)
        self.head = nn.Linear(width_in, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = F.relu(self.norm(x), inplace=True)
        return self.head(x.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """The shortcut plus BN-ReLU-Conv3x3-BN-ReLU-Conv3x3, with ``width`` output channels.

    Where the shape changes, the shortcut is a 1x1 convolution of the input after the first BN and ReLU; elsewhere it is
    the input itself.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same_shape = width_in == width and stride == 1
        self.shortcut = None if same_shape else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.norm2(out), inplace=True))
        return out + shortcut
