"""The distributions of the initial weights."""

import math

import pytest
import torch
from networks import CNNS, build
from torch import nn


@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_starts_as_those_of_the_papers_authors(name: str) -> None:
    """Convolutions N(0, 2 / (k² C_out)), dense layers uniform in ±1 / √n_out, BatchNorm 1 and 0, biases 0."""
    torch.manual_seed(0)
    for module in build(name, slim=True).modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            tolerance = 4 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(std, rel=tolerance)
            assert abs(module.weight.mean().item()) < 4 * std / math.sqrt(module.weight.numel())
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            assert 0.98 * bound < module.weight.abs().max().item() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
        else:
            continue
        assert module.bias is None or not module.bias.any()


def test_a_vit_starts_as_its_jax_original() -> None:
    torch.manual_seed(0)
    model = build("vit_ti", slim=True)
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    patch = model.patch_embed.proj
    assert patch.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 4 * 4), rel=0.05)
    assert not patch.bias.any()
    for block in model.blocks:
        width = block.attn.proj.in_features
        xavier = math.sqrt(6 / (width + width))
        for kernel in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
            assert 0.98 * xavier < kernel.abs().max().item() <= xavier
        for layer in (block.mlp.fc1, block.mlp.fc2):
            assert 0.98 * math.sqrt(6 / (5 * width)) < layer.weight.abs().max().item() <= math.sqrt(6 / (5 * width))
            assert 0.5e-6 < layer.bias.std().item() < 1.5e-6
        assert not block.attn.qkv.bias.any()
        assert not block.attn.proj.bias.any()
