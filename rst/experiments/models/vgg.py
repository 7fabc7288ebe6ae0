"""VGG with BatchNorm (Simonyan and Zisserman, 2015): the convolutions of torchvision, a classifier for 32x32 images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from rst.experiments.models.common import initialise


def vgg_bn(
    blocks: Sequence[int],
    widths: Sequence[int],
    hidden: int,
    dropout: float,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Sequential:
    """Build a VGG: stage i has ``blocks[i]`` 3x3 convolutions of ``widths[i]`` filters, then a 2x2 max pooling.

    The last feature map is averaged to 1x1 (that of a 32x32 image is 1x1 already) and goes to a classifier with two
    hidden layers. ``blocks`` (2, 2, 3, 3, 3), ``widths`` (64, 128, 256, 512, 512) and ``hidden`` 4096 make VGG16. It
    maps images [N, in_channels, H, W] to logits [N, num_classes].

    Args:
        blocks: number of convolutions in each stage.
        widths: number of filters of each stage.
        hidden: units of each hidden layer.
        dropout: probability, from 0 to 1, with which a hidden unit is dropped.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: side of the images in pixels, at least 2 to the power of the number of stages.

    Raises:
        ValueError: the images are too small.
    """
    from torchvision.models.vgg import make_layers  # Here, because torchvision takes a second to import.

    if image_size < 2 ** len(blocks):
        raise ValueError(
            f"model: a VGG of {len(blocks)} poolings needs dataset.image_size of at least {2 ** len(blocks)}, "
            f"got {image_size}: take model=resnet18 for smaller images."
        )
    layers: list[int | str] = []
    for count, width in zip(blocks, widths, strict=True):
        layers += [width] * count + ["M"]
    features = make_layers(layers, batch_norm=True)
    features[0] = nn.Conv2d(in_channels, widths[0], 3, padding=1)
    classifier = nn.Sequential(
        nn.Linear(widths[-1], hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )
    model = nn.Sequential(
        OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=classifier)
    )
    initialise(model)
    return model
