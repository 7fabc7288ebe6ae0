"""PyramidNet (Han et al., 2017): bottleneck blocks whose width grows a little with every block."""

import torch.nn.functional as F
from torch import Tensor, nn

from rst.experiments.models.common import initialise


class PyramidNet(nn.Module):
    """A 3x3 stem of 16 filters, three groups of (depth - 2) / 9 bottleneck blocks, and a global average pool.

    The width of the k-th of all K blocks is 16 + alpha k / K, rounded ("additive" widening). The first block of the
    second and of the third group has stride 2. Maps images [N, in_channels, H, W] of any size to logits
    [N, num_classes].

    Args:
        depth: number of layers, 9 n + 2 with n >= 1.
        alpha: how much wider the last block is than the stem, at least 0.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        ValueError: ``depth`` is another number.
    """

    def __init__(self, depth: int, alpha: float, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"model.depth of a PyramidNet must be 11, 20, 29, ... (9n + 2), got {depth}.")
        group = (depth - 2) // 9
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width_in = 16
        for index in range(3 * group):
            width = round(16 + alpha * (index + 1) / (3 * group))
            stride = 2 if index in (group, 2 * group) else 1
            blocks.append(PyramidBottleneck(width_in, width, stride))
            width_in = PyramidBottleneck.expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width_in)
        self.head = nn.Linear(width_in, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = F.relu(self.norm(x), inplace=True)
        return self.head(x.mean((2, 3)))


class PyramidBottleneck(nn.Module):
    """The shortcut plus BN-Conv1x1-BN-ReLU-Conv3x3-BN-ReLU-Conv1x1-BN, with 4 ``width`` output channels.

    The shortcut has no parameters: it is average-pooled where the block has stride 2, and the channels that the input
    lacks are zeros.
    """

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        width_out = self.expansion * width
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width_out, 1, bias=False),
            nn.BatchNorm2d(width_out),
        )
        # With ceil_mode an image of odd size is pooled to the size that the strided convolution gives it.
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.missing = width_out - width_in

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.missing))
