"""The number of parameters and the cost of each network, against the published numbers."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import (
    CONFIGS,
    IMAGENET_PARAMETERS,
    NAMES,
    PARAMETERS,
    SLIM,
    SMALL_IMAGE_CNNS,
    build,
    build_without_memory,
    image_size_of,
    model_config,
)
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Forward multiply-adds of one image, in 10^9. The first number is published for the network and counts every tap of a
# convolution. The second was counted on the network of the paper's authors: without the taps on zero padding, but with
# the element-wise operations, about 1 %.
MULTIPLY_ADDS = {
    "resnet18": (0.56, None),  # The authors' has 0.46, with a narrower stem.
    "wrn28_10": (5.24, 4.74),
    "pyramidnet164": (4.57, 4.40),
    "vgg16_bn": (0.33, 0.27),
    "vit_ti": (0.365, 0.37),
    "vit_s": (1.42, 1.43),
    "vit_b": (5.60, 5.62),
    "resnet50": (4.09, 3.97),
    "resnet101": (7.80, 7.51),
    "wrn16_1": (0.0267, None),
    "wrn16_2": (0.101, None),
    "wrn10_1": (0.0125, None),
    "wrn10_2": (0.0445, None),
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("num_classes", [10, 100])
def test_a_cifar_network_has_the_published_number_of_parameters(name: str, num_classes: int) -> None:
    model = build_without_memory(name, num_classes)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][num_classes == 100]


@pytest.mark.parametrize("name", IMAGENET_PARAMETERS)
def test_an_imagenet_network_has_the_published_number_of_parameters(name: str) -> None:
    model = build_without_memory(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == IMAGENET_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_has_the_published_number_of_multiply_adds(name: str) -> None:
    model = build_without_memory(name, 1000 if name in IMAGENET_PARAMETERS else 10).eval()
    on_padding = 0.0

    def count_padding(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal on_padding
        image = torch.ones(1, 1, *inputs[0].shape[2:], device="cpu")
        on_image = F.conv2d(image, torch.ones(1, 1, *conv.kernel_size, device="cpu"), None, conv.stride, conv.padding)
        missing = output.shape[2] * output.shape[3] * math.prod(conv.kernel_size) - on_image.sum().item()
        on_padding += missing * conv.in_channels * conv.out_channels

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count_padding)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, image_size_of(name), image_size_of(name), device="meta"))
    multiply_adds = counter.get_total_flops() / 2
    published, authors = MULTIPLY_ADDS[name]
    assert multiply_adds / 1e9 == pytest.approx(published, rel=0.01)
    if authors is not None:
        assert (multiply_adds - on_padding) / 1e9 == pytest.approx(authors, rel=0.02)


def test_every_network_of_configs_model_has_its_numbers_here() -> None:
    libraries = {"timm", "torchvision"}  # whose networks are chosen by name
    assert sorted({path.stem for path in CONFIGS.glob("*.yaml")} - libraries) == NAMES == sorted(MULTIPLY_ADDS)


@pytest.mark.parametrize("path", sorted(SLIM.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_slim_network_has_the_same_kinds_of_layers_and_less_than_half_the_parameters(path: Path) -> None:
    assert set(OmegaConf.load(path).model) <= set(model_config(path.stem))
    slim, full = build(path.stem, slim=True), build_without_memory(path.stem, 10)
    assert {type(module) for module in slim.modules()} == {type(module) for module in full.modules()}
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in full.parameters()) / 2


@pytest.mark.parametrize("name", SMALL_IMAGE_CNNS)
def test_a_cnn_for_small_images_takes_grey_images_of_8x8_pixels(name: str) -> None:
    model = build(name, slim=True, channels=1, image_size=8)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ["vgg16_bn", "vit_ti"])
def test_vgg_and_vit_take_grey_images(name: str) -> None:
    assert build(name, slim=True, channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)
