"""ResNets (He et al., 2016) from timm: with a 3x3 stem for small images, with the 7x7 stem for ImageNet."""

from collections.abc import Sequence

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from rst.models.common import check_data, initialise


def small_image_resnet(blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3) -> ResNet:
    """Build a ResNet of basic blocks with a 3x3 stem of `widths[0]` filters and no pooling after it.

    `blocks` (2, 2, 2, 2) and `widths` (64, 128, 256, 512) make the usual ResNet18 for CIFAR. The authors' own has a
    stem of 16 filters without ReLU, and biases in its convolutions.
    """
    check_data(num_classes, in_channels)
    stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
    model = _resnet(BasicBlock, stem, blocks, widths, num_classes)
    model.register_module("maxpool", nn.Identity())
    return model


def imagenet_resnet(
    blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3, image_size: int = 224
) -> ResNet:
    """Build a ResNet of bottlenecks with a 7x7 stem and max pooling; the stride is on the 3x3 convolutions.

    `blocks` (3, 4, 6, 3) make ResNet50 and (3, 4, 23, 3) ResNet101, both with `widths` (64, 128, 256, 512). The
    authors' own has no ReLU after the stem.
    """
    check_data(num_classes, in_channels)
    if image_size < 64:
        raise ValueError(
            f"model: a ResNet with the ImageNet stem shrinks images 32 times and needs dataset.image_size of at least "
            f"64, got {image_size}: take model=resnet18 for small images."
        )
    stem = nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False)
    return _resnet(Bottleneck, stem, blocks, widths, num_classes)


def _resnet(
    block: type[BasicBlock | Bottleneck],
    stem: nn.Conv2d,
    blocks: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
) -> ResNet:
    # Only timm's "deep" stem has a free width, which the slim versions need; its convolutions are replaced at once.
    model = ResNet(
        block,  # type: ignore[arg-type]  # timm's annotation names an instance, its code takes the class
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
