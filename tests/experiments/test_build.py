"""What is built from a spec: network, optimizer, learning rates, method, precision."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stopped_runs import in_sessions
from torch import nn

from rst.experiments.build import (
    autocast,
    build_lr_scheduler,
    build_method,
    build_model,
    build_optimizer,
    lr_decay,
    set_backends,
)
from rst.experiments.compose import compose
from rst.experiments.runs.record import open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import train
from rst.variants import LookSAM

Config = Callable[..., RunSpec]
CPU = torch.device("cpu")

# ---------------------------------------------------------------------------------------------------- the learning rate


@given(total=st.integers(1, 10_000), data=st.data())
def test_the_learning_rate_falls_along_a_cosine_from_one_to_zero(total: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, total - 1))
    assert lr_decay(0, total, 0) == 1
    assert lr_decay(total, total, 0) == pytest.approx(0, abs=1e-12)
    assert lr_decay(t, total, 0) == pytest.approx(math.cos(math.pi * t / total / 2) ** 2)
    assert lr_decay(t + 1, total, 0) < lr_decay(t, total, 0)


@given(total=st.integers(1, 10_000), data=st.data())
def test_warm_up_multiplies_the_cosine_and_its_first_step_is_zero(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(1, total))
    t = data.draw(st.integers(0, total))
    assert lr_decay(0, total, warmup) == 0
    assert lr_decay(t, total, warmup) == pytest.approx(min(1, t / warmup) * lr_decay(t, total, 0))


WARM_UP = ("recipe.epochs=3", "recipe.warmup_epochs=1", "optimizer.lr=0.3")


def expected_rates(spec: RunSpec) -> list[float]:
    """The base rate times the decay of every step, in floating-point operations of the same order."""
    warmup_steps = spec.recipe.warmup_epochs * spec.steps_per_epoch
    return [spec.optimizer.lr * lr_decay(t, spec.total_steps, warmup_steps) for t in range(spec.total_steps)]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step of the optimizer from now on."""
    seen: list[float] = []
    step = torch.optim.SGD.step

    def spied(self: torch.optim.SGD, *arguments: object) -> object:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spied)
    return seen


@pytest.mark.parametrize("more", [(), WARM_UP], ids=["", "warm-up"])
def test_every_step_of_a_run_has_its_own_rate_and_the_metrics_name_that_of_the_last_step_of_an_epoch(
    config: Config, rates: list[float], more: tuple[str, ...]
) -> None:
    spec = config(*more)
    record = train(spec, show_progress=False)
    assert rates == expected_rates(spec)
    assert [line["lr"] for line in record.metrics] == rates[2::3]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_resumed_run_goes_on_with_the_same_rates_to_the_bit(config: Config, rates: list[float], steps: int) -> None:
    spec = config(*WARM_UP)
    in_sessions(spec, steps)
    assert rates == expected_rates(spec)
    assert [line["lr"] for line in open_record(spec).metrics] == rates[2::3]


def test_learning_rates_of_parameter_groups_keep_their_ratio(config: Config) -> None:
    spec = config()
    optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr": rate} for rate in (0.1, 0.02)])
    scheduler = build_lr_scheduler(spec, optimizer)
    for t in range(spec.total_steps):
        decay = lr_decay(t, spec.total_steps, 0)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * decay, 0.02 * decay]
        optimizer.step()
        scheduler.step()


# ------------------------------------------------------------------------------------------------------ the other parts


def test_initial_weights_follow_from_the_seed_alone() -> None:
    """Not from the state of torch's global generator, nor from the scheme."""
    commands = [["scheme=sgd"], ["scheme=sam"], ["seed=1"]]
    models = []
    for command in commands:
        torch.manual_seed(len(models))
        models.append(build_model(compose(["model=wrn10_1", "dataset=digits", *command]), CPU))
    sgd, sam, other_seed = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(sgd, sam)
    assert not torch.equal(sgd, other_seed)


def test_optimizer_has_the_options_of_its_group_over_all_parameters() -> None:
    spec = compose(["model=vit_ti", "optimizer.lr=0.01", "+optimizer.amsgrad=true"])
    model = nn.Linear(2, 3)
    optimizer = build_optimizer(spec, model)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))
    assert {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")} == {
        "lr": 0.01,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.03,
        "amsgrad": True,
    }


def test_method_has_schedule_ratio_radius_and_variant_of_the_spec() -> None:
    spec = compose(["dataset=digits", "model=wrn10_1", "schedule=linear", "variant=looksam", "variant.k=3", "seed=5"])
    method = build_method(spec, nn.Linear(2, 2))
    assert (method.schedule, method.gamma_ratio, method.rho) == (spec.p, spec.gamma_ratio, 0.6)
    assert isinstance(method.variant, LookSAM)
    assert method.variant.k == 3
    assert len(method.gate) == spec.total_steps
    assert torch.equal(method.gate, build_method(spec, nn.Linear(3, 3)).gate)


@pytest.fixture
def backends() -> Iterator[None]:
    """Afterwards torch's global flags are those from before."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before[:3]
    torch.use_deterministic_algorithms(before[3])


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("tf32", [True, False])
def test_float32_products_are_rounded_to_tf32_only_where_the_spec_says_so(config: Config, tf32: bool) -> None:
    """By default torch rounds those of convolutions."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    set_backends(config(f"tf32={tf32}"))
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_kernels_are_used_only_where_the_spec_says_so(config: Config, deterministic: bool) -> None:
    set_backends(config(f"deterministic={deterministic}"))
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic


@pytest.mark.parametrize(
    ("more", "dtype"),
    [("autocast=null", torch.float32), ("autocast=bfloat16", torch.bfloat16), ("autocast=float16", torch.float16)],
)
def test_network_computes_in_the_precision_of_the_run(config: Config, more: str, dtype: torch.dtype) -> None:
    with autocast(config(more), CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
