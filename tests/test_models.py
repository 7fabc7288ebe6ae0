"""The networks: their size and cost against the published numbers, and that every slim version trains."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rst.models import PyramidNet, WideResNet, imagenet_resnet, small_image_resnet, vgg_bn, vision_transformer
from rst.models.pyramidnet import PyramidBottleneck
from rst.models.wide_resnet import PreActivationBlock

CONFIGS = Path(__file__).parents[1] / "configs" / "model"
SLIM = CONFIGS / "slim" / "smoke"

# Trainable parameters with 10 and with 100 classes. Equal to the authors' own networks except for ResNet18 (theirs
# 11,150,874, with a narrower stem) and WRN-28-10 (theirs 36,220,634, without the 1x1 shortcuts).
PARAMETERS = {
    "resnet18": (11_173_962, 11_220_132),
    "wrn28_10": (36_479_194, 36_536_884),
    "wrn16_1": (175_066, 180_916),
    "wrn16_2": (691_674, 703_284),
    "wrn10_1": (77_850, 83_700),
    "wrn10_2": (303_706, 315_316),
    "pyramidnet164": (27_215_989, 27_319_039),
    "vgg16_bn": (33_646_666, 34_015_396),
    "vit_ti": (5_362_762, 5_380_132),
    "vit_s": (21_342_346, 21_376_996),
    "vit_b": (85_152_010, 85_221_220),
}
IMAGENET_PARAMETERS = {"resnet50": 25_557_032, "resnet101": 44_549_160}

# Forward multiply-adds of one image, in 10^9: as they are published for the network (every tap of a convolution), and
# as counted on the authors' own network (no taps on the zero padding, but also the element-wise work, about 1 %).
MULTIPLY_ADDS = {
    "resnet18": (0.56, None),  # authors: 0.46, with a narrower stem
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
NAMES = sorted([*PARAMETERS, *IMAGENET_PARAMETERS])
CNNS = [name for name in NAMES if not name.startswith("vit")]
SMALL_IMAGE_CNNS = [name for name in CNNS if name not in ("vgg16_bn", "resnet50", "resnet101")]


def image_size_of(name: str) -> int:
    return 224 if name in IMAGENET_PARAMETERS else 32


def model_config(name: str, slim: bool = False) -> DictConfig:
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    config.pop("defaults", None)
    slim_file = SLIM / f"{name}.yaml"
    return OmegaConf.merge(config, OmegaConf.load(slim_file)) if slim and slim_file.exists() else config


def build(name: str, slim: bool = False, num_classes: int = 10, channels: int = 3, image_size: int = 0) -> nn.Module:
    """Build what `model=<name>` builds, from the network's file and the three keys of the data set alone."""
    dataset = {"num_classes": num_classes, "channels": channels, "image_size": image_size or image_size_of(name)}
    return instantiate(OmegaConf.create({"model": model_config(name, slim), "dataset": dataset}).model)


def build_without_memory(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=num_classes)


def batch(name: str, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = image_size_of(name)
    return torch.randn(size, 3, side, side, generator=generator), torch.arange(size) % 10


def slim_with_random_head(name: str) -> nn.Module:
    """A slim network whose logits depend on its input: a ViT's head starts at zero."""
    torch.manual_seed(0)
    model = build(name, slim=True)
    if name.startswith("vit"):
        nn.init.normal_(model.get_parameter("head.weight"), std=0.1)
    return model


def loss_and_gradients(call: Any, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(2)
    loss = F.cross_entropy(call(x), y)
    return loss.detach().double(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("num_classes", [10, 100])
def test_parameter_count_of_a_cifar_network_is_the_published_one(name: str, num_classes: int) -> None:
    model = build_without_memory(name, num_classes)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][num_classes == 100]


@pytest.mark.parametrize("name", IMAGENET_PARAMETERS)
def test_parameter_count_of_an_imagenet_network_is_the_published_one(name: str) -> None:
    model = build_without_memory(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == IMAGENET_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_forward_multiply_adds_are_the_published_ones(name: str) -> None:
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


def test_every_model_file_is_in_the_tables() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES == sorted(MULTIPLY_ADDS)


@pytest.mark.parametrize("path", sorted(SLIM.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_slim_network_is_the_same_network_only_smaller(path: Path) -> None:
    assert set(OmegaConf.load(path)) <= set(model_config(path.stem))
    slim, full = build(path.stem, slim=True), build_without_memory(path.stem, 10)
    assert {type(module) for module in slim.modules()} == {type(module) for module in full.modules()}
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in full.parameters()) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_slim_network_classifies_and_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model, (x, y) = slim_with_random_head(name), batch(name)
    assert model(x).shape == (4, 10)
    _, gradients = loss_and_gradients(model, model, x, y)
    for (parameter, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter


@pytest.mark.parametrize("name", NAMES)
def test_a_slim_network_learns_its_batch(name: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = build(name, slim=True), batch(name, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same_logits_and_lasts_through_the_network(name: str) -> None:
    model, (x, _) = slim_with_random_head(name).eval(), batch(name)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    layouts = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4)
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_gives_nearly_the_same_loss_and_finite_gradients(name: str) -> None:
    model, (x, y) = slim_with_random_head(name), batch(name)
    expected, _ = loss_and_gradients(model, model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        loss, gradients = loss_and_gradients(model, model, x, y)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients)


def check_compiled(name: str, backend: str) -> None:
    """In double precision, where rounding does not flip a ReLU."""
    torch.compiler.reset()
    model, (x, y) = slim_with_random_head(name).double(), batch(name)
    x = x.double()
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0  # a compiler may draw other masks
    loss, gradients = loss_and_gradients(torch.compile(model, backend=backend, fullgraph=True), model, x, y)
    expected_loss, expected_gradients = loss_and_gradients(model, model, x, y)
    torch.testing.assert_close(loss, expected_loss)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet18", "wrn28_10", "pyramidnet164", "vgg16_bn", "vit_ti", "resnet50"])
def test_each_architecture_is_traced_whole_with_the_same_loss_and_gradients(name: str) -> None:
    check_compiled(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_slim_network_has_the_same_loss_and_gradients(name: str) -> None:
    check_compiled(name, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_network_makes_one_step(name: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = build(name), batch(name, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_starts_as_the_papers_sources_state(name: str) -> None:
    """Convolutions N(0, 2 / (k² C_out)), dense layers U(±1 / √n_out), BatchNorm 1 and 0, biases 0."""
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


@pytest.mark.parametrize("name", ["vit_ti", "vit_s", "vit_b"])
def test_a_vit_drops_a_tenth_everywhere_but_in_the_head(name: str) -> None:
    model = build_without_memory(name, 10)
    rates = {path: module.p for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates.pop("head_drop") == 0
    assert len(rates) == 1 + 4 * 12
    assert set(rates.values()) == {0.1}
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    assert model.blocks[0].attn.num_heads == {"vit_ti": 3, "vit_s": 6, "vit_b": 12}[name]


@pytest.mark.parametrize("name", SMALL_IMAGE_CNNS)
def test_a_small_image_cnn_takes_the_digits(name: str) -> None:
    model = build(name, slim=True, channels=1, image_size=8)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_vgg_and_vit_take_grey_images() -> None:
    for name in ("vgg16_bn", "vit_ti"):
        assert build(name, slim=True, channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)


def test_pyramidnet_widens_by_alpha_over_the_number_of_blocks() -> None:
    with torch.device("meta"):
        blocks = PyramidNet(depth=164, alpha=270, num_classes=10).blocks
    assert [block.branch[1].out_channels for block in blocks] == [16 + 5 * k for k in range(1, 55)]
    assert [k for k, block in enumerate(blocks) if block.branch[4].stride == (2, 2)] == [18, 36]


@pytest.mark.parametrize("side", [7, 8])
def test_a_pyramidnet_shortcut_is_the_pooled_input_padded_with_zero_channels(side: int) -> None:
    block = PyramidBottleneck(width_in=8, width=3, stride=2)
    nn.init.zeros_(block.branch[-1].weight)
    x = torch.randn(2, 8, side, side)
    out = block(x)
    torch.testing.assert_close(out[:, :8], F.avg_pool2d(x, 2, ceil_mode=True))
    assert out.shape[1] == 12
    assert not out[:, 8:].any()


def test_a_wide_resnet_shortcut_is_the_input_or_a_1x1_convolution_of_the_activated_input() -> None:
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
    ("builder", "keys"),
    [
        (small_image_resnet, RESNET),
        (imagenet_resnet, RESNET),
        (vgg_bn, VGG),
        (vision_transformer, VIT),
        (WideResNet, WRN),
        (PyramidNet, PYRAMID),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_network_needs_a_class_and_a_channel(builder: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model: dataset\.num_classes must be at least 1, got 0\."):
        builder(**keys, num_classes=0)
    with pytest.raises(ValueError, match=r"model: dataset\.channels must be at least 1, got 0\."):
        builder(**keys, num_classes=10, in_channels=0)


@pytest.mark.parametrize(
    ("builder", "keys", "sentence"),
    [
        (vgg_bn, {**VGG, "image_size": 8}, r"model: .* dataset\.image_size of at least 32, got 8: take model=resnet18"),
        (vision_transformer, {**VIT, "image_size": 30}, r"model: .*patch_size=4 cannot tile dataset\.image_size=30"),
        (vision_transformer, {**VIT, "heads": 5}, r"model\.width=12 .* multiple of model\.heads=5"),
        (imagenet_resnet, {**RESNET, "image_size": 32}, r"model: .* dataset\.image_size of at least 64, got 32"),
        (WideResNet, {**WRN, "depth": 12}, r"model\.depth .* got 12"),
        (WideResNet, {**WRN, "widen_factor": 0}, r"model\.widen_factor must be at least 1, got 0"),
        (PyramidNet, {**PYRAMID, "depth": 163}, r"model\.depth .* got 163"),
        (PyramidNet, {**PYRAMID, "alpha": -1}, r"model\.alpha must be at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(builder: Any, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        builder(**keys, num_classes=10)
    assert "\n" not in str(error.value)


def test_the_networks_need_no_hydra() -> None:
    for path in (CONFIGS.parents[1] / "rst" / "models").glob("*.py"):
        assert "hydra" not in path.read_text(encoding="utf-8"), path.name
