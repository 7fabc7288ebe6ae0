"""ResNets (He et al., 2016) of timm: with a 3x3 stem for small images, and with the 7x7 stem for ImageNet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from rst.experiments.models.common import initialise

# timm takes more than a second to import, so a function imports it when it builds a network.
if TYPE_CHECKING:
    from timm.models.resnet import ResNet


def small_image_resnet(
    blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3
) -> "ResNet":
    """Build a ResNet of basic blocks for small images: its stem is a 3x3 convolution without pooling.

    ``blocks`` (2, 2, 2, 2) and ``widths`` (64, 128, 256, 512) make the usual ResNet18 for CIFAR. The one of the paper's
    authors has a stem of 16 filters without ReLU, and biases in its convolutions. It maps images
    [N, in_channels, H, W] to logits [N, num_classes].

    Args:
        blocks: number of blocks in each stage.
        widths: number of channels of each stage; the stem has the first.
        num_classes: number of logits.
        in_channels: channels of the images.
    """
    from timm.models.resnet import BasicBlock

    stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
    model = _resnet(BasicBlock, stem, blocks, widths, num_classes)
    model.register_module("maxpool", nn.Identity())
    return model


def imagenet_resnet(
    blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3, image_size: int = 224
) -> "ResNet":
    """Build a ResNet of bottlenecks with a 7x7 stem and max pooling; the stride is on the 3x3 convolutions.

    ``blocks`` (3, 4, 6, 3) make ResNet50 and (3, 4, 23, 3) ResNet101, both with ``widths`` (64, 128, 256, 512). Those
    of the paper's authors have no ReLU after the stem. It maps images [N, in_channels, H, W] to logits
    [N, num_classes].

    Args:
        blocks: number of blocks in each stage.
        widths: width of the bottlenecks of each stage, which have four times as many output channels; the stem has the
            first.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: side of the images in pixels, at least 64.

    Raises:
        ValueError: the images are too small.
    """
    from timm.models.resnet import Bottleneck

    if image_size < 64:
        raise ValueError(
            f"model: a ResNet with the ImageNet stem shrinks images 32 times and needs dataset.image_size of at least "
            f"64, got {image_size}: take model=resnet18 for small images."
        )
    stem = nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False)
    return _resnet(Bottleneck, stem, blocks, widths, num_classes)


def _resnet(block: Any, stem: nn.Conv2d, blocks: Sequence[int], widths: Sequence[int], num_classes: int) -> "ResNet":
    from timm.models.resnet import ResNet

    # Of timm's stems only the "deep" one has a width that the slim networks can choose. Ours replaces its convolutions.
    model = ResNet(
        block,
        tuple(blocks),
        num_classes,
        channels=tuple(widths),
        stem_type="deep",
        stem_width=stem.out_channels // 2,
        zero_init_last=False,
    )
    model.register_module("conv1", stem)
    initialise(model)
    return model
