"""Each part measures what it names, here on tiny sizes, and writes it as JSON and as a Markdown table."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rst.experiments.bench import epoch, loader, parts, recipes, start, steps, sweep, variants, vectors
from rst.experiments.bench.table import Table, write
from rst.experiments.bench.vectors import Passes, contenders_on
from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.runs.environment import environment
from rst.experiments.runs.record import open_record

CPU = torch.device("cpu")
TINY = ("scale=smoke", "model=wrn10_1")
MEASURED: dict[str, Callable[[], Table]] = {
    "vectors": lambda: vectors.measure(CPU, 1, {"one layer": lambda: nn.Linear(3, 2)}),
    "steps": lambda: steps.measure(CPU, 1, ["wrn10_1"], ["scale=smoke"]),
    "variants": lambda: variants.measure(CPU, 1, {"sam": "sam", "esam": "esam"}, batch=4),
    "loader": lambda: loader.measure(CPU, 1, 300, TINY),
    "epoch": lambda: epoch.measure(CPU, 1, 64, TINY),
    "start": lambda: start.measure(CPU, 1, {}),
    "sweep": lambda: sweep.measure(CPU, 1, (*TINY, "dataset=digits", "recipe.epochs=1"), ("demo", "recipe.epochs=1")),
    "recipes": lambda: recipes.measure(CPU, 1, ["resnet18"], {"fp32": (), "bf16": ("autocast=bfloat16",)}, TINY[:1]),
}
FIGURES = {
    "vectors": {"network", "contender", "over_fastest_peer", "milliseconds", "operations"},
    "steps": {"network", "p", "time_over_plain_and_1_plus_p"},
    "variants": {"variant", "time_over_sgd", "vectors_kept", "passes"},
    "loader": {"images_per_second", "over_torchvision", "share_of_a_training_step"},
    "epoch": {"loop", "images_per_second", "over_conventional_SAM"},
    "start": {"what", "seconds_beyond_torch", "over_import_torch"},
    "sweep": {"what", "milliseconds_a_run", "percent_of_the_training"},
    "recipes": {"network", "form", "sgd_images_per_second", "sgd_minutes", "sam_minutes", "sam_time_over_sgd"},
}
ROWS = {"vectors": 10, "steps": 3, "variants": 2, "loader": 1, "epoch": 3, "start": 1, "sweep": 8, "recipes": 2}


@pytest.mark.parametrize("name", parts.PARTS)
def test_a_part_writes_its_figures_as_json_and_as_a_markdown_table(name: str, tmp_path: Path) -> None:
    if name in ("vectors", "epoch"):
        pytest.importorskip("pytorch_optimizer")
    table = MEASURED[name]()
    assert [file.name for file in write(table, tmp_path, {"torch": "2", "threads": 1}, 3.2)] == [
        f"{name}.json",
        f"{name}.md",
    ]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["part"] == name
    assert record["environment"] == {"torch": "2", "threads": 1}
    assert record["rounds"] == 1
    assert len(record["rows"]) == ROWS[name]
    for row in record["rows"]:
        assert FIGURES[name] <= row.keys()
        assert all(isinstance(value, str | int | float | None) for value in row.values())
    page = (tmp_path / f"{name}.md").read_text()
    assert page.startswith(f"# {table.title}\n")
    assert table.note in page
    assert "torch 2, threads 1" in page
    assert sum(line.startswith("|") for line in page.splitlines()) == 2 + len(table.shown or table.rows)


def test_the_operators_that_bound_an_epoch_are_named_with_their_shares_of_its_time() -> None:
    images, weights = torch.randn(8, 16, 32, 32), torch.randn(16, 16, 3, 3)

    def convolve() -> None:
        torch.nn.functional.conv2d(images, weights).relu()

    sentence = epoch.what_takes_the_time(convolve)
    shares = {name: int(share) for name, share in re.findall(r"(aten::\w+) (\d+)%", sentence)}
    assert len(shares) == 5
    assert "conv" in next(iter(shares))
    assert sum(shares.values()) <= 102  # rounded


def test_the_rate_of_convolutions_is_that_of_their_operations_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weights = torch.randn(8, 16, 32, 32), torch.randn(16, 16, 3, 3)
    operations = 2 * 8 * 16 * 30 * 30 * 16 * 3 * 3

    def convolve() -> None:
        began = time.perf_counter()
        torch.nn.functional.conv2d(images, weights)
        durations.append(time.perf_counter() - began)

    durations: list[float] = []
    monkeypatch.setattr(epoch, "matrix_product_rate", lambda: 1e6)
    [percent] = re.findall(r"convolutions do (\d+)%", epoch.what_takes_the_time(convolve))
    in_profile, _ = durations
    assert int(percent) / 100 * 1e6 >= 0.99 * operations / in_profile  # The call takes a little longer than its kernel.


def test_every_contender_of_the_vector_work_leaves_the_weights_as_they_were() -> None:
    pytest.importorskip("pytorch_optimizer")
    passes = Passes([torch.Size([3, 2]), torch.Size([5])], CPU)
    before = [weight.detach().clone() for weight in passes.weights]
    for step in contenders_on(passes).values():
        step()
        assert all(torch.equal(weight, old) for weight, old in zip(passes.weights, before, strict=True))
        assert all(weight.grad is None for weight in passes.weights)


def test_a_pass_hands_over_gradients_that_the_weight_of_the_loss_multiplies() -> None:
    passes = Passes([torch.Size([3, 2]), torch.Size([5])], CPU)
    (2.0 * passes()).backward()
    for weight, ready in zip(passes.weights, passes.gradients, strict=True):
        assert torch.equal(weight.grad, 2 * ready)
        assert weight.grad.data_ptr() != ready.data_ptr()


def test_the_vector_work_is_measured_on_tensors_of_the_sizes_that_the_notes_name() -> None:
    sizes = {name: vectors.shapes(build) for name, build in vectors.NETWORKS.items()}
    assert {name: len(shapes) for name, shapes in sizes.items()} == {
        "WRN-16-1": 43,
        "WRN-112-1": 331,
        "ResNet18": 62,
        "PyramidNet-164": 599,
        "WRN28-10": 80,
    }
    millions = [sum(shape.numel() for shape in shapes) / 1e6 for shapes in sizes.values()]
    assert [round(million, 1) for million in millions] == [0.2, 1.7, 11.2, 27.2, 36.5]


def test_minutes_of_the_paper_are_those_that_table_3_prints() -> None:
    printed = {name: recipes.paper_minutes(name)["sgd"] for name in recipes.NETWORKS}
    assert printed == {
        "vgg16_bn": 9.9,
        "resnet18": 15.6,
        "wrn28_10": 33.5,
        "pyramidnet164": 119.7,
        "vit_ti": 189.0,
        "vit_s": 247.9,
        "vit_b": 407.8,
    }
    assert recipes.paper_minutes("resnet18")["sam"] == pytest.approx(15.6 + 15.9)


def test_a_recipe_that_would_take_too_long_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "SECONDS", -1.0)
    forms = {"fp32": (), "bf16": ("autocast=bfloat16",)}
    table = recipes.measure(CPU, 1, ["wrn10_1"], forms, ["scale=smoke"])
    assert [row["form"] for row in table.rows] == ["fp32"]
    assert "Left out, since it would take too long: wrn10_1 in bf16." in table.note


def test_the_parts_of_a_run_and_the_rest_are_within_what_it_takes_beyond_its_training(overrides: list[str]) -> None:
    spec = compose([*overrides, "recipe.epochs=1"])
    begin = time.perf_counter()
    parts_of_run = sweep.seconds_beyond_training(spec)
    total = time.perf_counter() - begin
    trained = open_record(spec).summary["train_seconds"]
    assert all(seconds > 0 for seconds in parts_of_run.values())
    assert trained + sum(parts_of_run.values()) <= total


def test_figures_of_a_network_are_there_as_soon_as_it_is_measured() -> None:
    networks = ["wrn10_1", "resnet18"]
    counts = []
    recipes.measure(CPU, 1, networks, {"fp32": ()}, TINY[:1], written=lambda table: counts.append(len(table.rows)))
    assert counts == [1, 2]


def test_a_part_that_is_not_there_is_answered_by_a_sentence(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script("bench", "loader", "speed", "--output", tmp_path) == 1
    out, err = capsys.readouterr()
    assert err == (
        "bench.py: there is no part speed: write some of vectors steps variants loader epoch start sweep recipes, or "
        "none for all.\n"
    )
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_measured(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert script("bench", "loader", "--device", "cpu", "--output", tmp_path / "file") == 1
    assert capsys.readouterr().err == f"bench.py: {tmp_path}/file/cpu cannot be written: Not a directory.\n"


def test_the_recipes_are_refused_without_a_gpu_and_left_out_of_all_parts() -> None:
    with pytest.raises(InputError, match="recipes trains the paper's full-size networks, which needs a GPU"):
        parts.chosen(["recipes"], CPU)
    assert parts.chosen([], CPU) == ["vectors", "steps", "variants", "loader", "epoch", "start", "sweep"]
    assert parts.chosen(["loader", "steps", "loader"], CPU) == ["loader", "steps"]


def test_figures_of_a_cpu_have_a_folder_of_their_own() -> None:
    assert parts.folder_of(Path("results/bench"), CPU) == Path("results/bench/cpu")


@pytest.mark.slow
def test_the_command_measures_a_part_and_writes_it_with_the_environment(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script("bench", "loader", "--rounds", 1, "--device", "cpu", "--output", tmp_path) == 0
    record = json.loads((tmp_path / "cpu" / "loader.json").read_text())
    assert record["environment"] == environment(CPU)
    assert "over torchvision" in capsys.readouterr().out
