"""How single networks are made: widths, shortcuts and dropout; and arguments that are refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import CONFIGS, build_without_memory
from torch import nn

from rst.experiments.models import (
    PyramidNet,
    WideResNet,
    imagenet_resnet,
    vgg_bn,
    vision_transformer,
)
from rst.experiments.models.pyramidnet import PyramidBottleneck
from rst.experiments.models.wide_resnet import PreActivationBlock


@pytest.mark.parametrize("name", ["vit_ti", "vit_s", "vit_b"])
def test_a_vit_drops_a_tenth_everywhere_but_in_the_head(name: str) -> None:
    model = build_without_memory(name, 10)
    rates = {path: module.p for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates.pop("head_drop") == 0
    assert len(rates) == 1 + 4 * 12
    assert set(rates.values()) == {0.1}
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    assert model.blocks[0].attn.num_heads == {"vit_ti": 3, "vit_s": 6, "vit_b": 12}[name]


def test_each_block_of_a_pyramidnet_is_wider_by_alpha_over_the_number_of_blocks() -> None:
    with torch.device("meta"):
        blocks = PyramidNet(depth=164, alpha=270, num_classes=10).blocks
    assert [block.branch[1].out_channels for block in blocks] == [16 + 5 * k for k in range(1, 55)]
    assert [k for k, block in enumerate(blocks) if block.branch[4].stride == (2, 2)] == [18, 36]


@pytest.mark.parametrize("side", [7, 8])
def test_the_shortcut_of_a_pyramidnet_is_the_pooled_input_padded_with_zero_channels(side: int) -> None:
    block = PyramidBottleneck(width_in=8, width=3, stride=2)
    nn.init.zeros_(block.branch[-1].weight)
    x = torch.randn(2, 8, side, side)
    out = block(x)
    torch.testing.assert_close(out[:, :8], F.avg_pool2d(x, 2, ceil_mode=True))
    assert out.shape[1] == 12
    assert not out[:, 8:].any()


def test_the_shortcut_of_a_wide_resnet_is_the_input_or_a_1x1_convolution_of_the_activated_input() -> None:
    x = torch.randn(2, 8, 6, 6)
    same, changed = PreActivationBlock(8, 8, stride=1), PreActivationBlock(8, 16, stride=2)
    for block in (same, changed):
        nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(same(x), x)
    torch.testing.assert_close(changed(x), changed.shortcut(F.relu(changed.norm1(x))))
    assert changed.shortcut.kernel_size == (1, 1)


RESNET = {"blocks": [1, 1, 1, 1], "widths": [8, 8, 8, 8]}
VGG = {"blocks": [1, 1, 1, 1, 1], "widths": [8, 8, 8, 8, 8], "hidden": 8, "dropout": 0.5}
VIT = {"width": 12, "depth": 1, "heads": 3, "patch_size": 4, "dropout": 0.1}
WRN = {"depth": 10, "widen_factor": 1}
PYRAMID = {"depth": 11, "alpha": 3}


@pytest.mark.parametrize(
    ("builder", "keys", "sentence"),
    [
        (vgg_bn, {**VGG, "image_size": 8}, r"model: .* dataset\.image_size of at least 32, got 8: take model=resnet18"),
        (vision_transformer, {**VIT, "image_size": 30}, r"model: .*patch_size=4 cannot tile dataset\.image_size=30"),
        (vision_transformer, {**VIT, "heads": 5}, r"model\.width=12 .* multiple of model\.heads=5"),
        (imagenet_resnet, {**RESNET, "image_size": 32}, r"model: .* dataset\.image_size of at least 64, got 32"),
        (WideResNet, {**WRN, "depth": 12}, r"model\.depth .* got 12"),
        (PyramidNet, {**PYRAMID, "depth": 163}, r"model\.depth .* got 163"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_in_one_sentence(
    builder: Any, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        builder(**keys, num_classes=10)
    assert "\n" not in str(error.value)


def test_the_networks_need_no_hydra() -> None:
    files = list((CONFIGS.parents[1] / "rst" / "experiments" / "models").glob("*.py"))
    assert len(files) > 5
    for path in files:
        assert "hydra" not in path.read_text(encoding="utf-8"), path.name
