"""``evaluate=``: the scores of a network that a run has saved."""

from pathlib import Path

import pytest
import torch
import yaml

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record
from rst.experiments.training import checkpoint, score, train


@pytest.fixture
def done(config) -> Record:
    return train(config("recipe.epochs=4", "dataset.test_images=301"), show_progress=False)


def scored(overrides: list[str]) -> dict[str, float]:
    return score(compose(overrides), overrides)


@pytest.mark.parametrize("name", ["id", "folder", "checkpoint"])
def test_a_run_is_scored_by_its_id_its_folder_or_its_checkpoint(tmp_path, done, name):
    """Nothing else has to be said: network and data are those of the checkpoint."""
    given = getattr(done, name)
    assert scored([f"evaluate='{given}'", f"paths.runs={tmp_path / 'runs'}"])["error"] == done.summary["test_error"]


def test_the_command_line_prints_the_error_and_changes_nothing(overrides, command, done):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.folder.iterdir()}
    process, output = command(f"evaluate={done.id}", *(key for key in overrides if key.startswith("paths.")))
    process.join(timeout=60)
    assert process.exitcode == 0
    assert f"test error {done.summary['test_error']:.4g}" in output.read_text()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.folder.iterdir()} == before


@pytest.mark.parametrize(
    "more",
    [
        ("autocast=bfloat16",),
        ("channels_last=true",),
        ("dataset=cifar100", "dataset.source=digits", "dataset.validation=10", "scheme=sgd"),
    ],
    ids=" ".join,
)
def test_a_run_is_scored_as_it_was_trained(config, tmp_path, more):
    record = train(config(*more, "dataset.test_images=301"), show_progress=False)
    scores = scored([f"evaluate={record.id}", f"paths.runs={tmp_path / 'runs'}"])
    assert scores["error"] == record.summary["test_error"]
    assert scores["loss"] == pytest.approx(record.summary["test_loss"], rel=1e-6)


def test_the_command_that_trained_it_scores_it_also_with_another_cache(overrides, tmp_path, done):
    moved = [*overrides, "recipe.epochs=4", "dataset.test_images=301", f"paths.cache={tmp_path / 'elsewhere'}"]
    assert scored([*moved, f"evaluate={done.id}"])["error"] == done.summary["test_error"]


@pytest.mark.parametrize(
    "more", ["model=wrn16_1", "dataset=cifar10", "recipe.epochs=5", "scheme=sgd", "seed=1", "autocast=bfloat16"]
)
def test_another_config_than_that_of_the_checkpoint_is_refused(tmp_path, done, more):
    key = more.split("=")[0]
    with pytest.raises(InputError, match=rf"{done.checkpoint} is of another config: leave {key} out"):
        scored([f"evaluate={done.id}", f"paths.runs={tmp_path / 'runs'}", more])


def test_a_name_that_is_no_checkpoint_is_refused(tmp_path, done):
    with pytest.raises(
        InputError, match="evaluate=nothing is neither a checkpoint, nor the folder of a run, nor a run"
    ):
        scored(["evaluate=nothing", f"paths.runs={tmp_path / 'runs'}"])
    with pytest.raises(InputError, match=r"config\.yaml is not a checkpoint"):
        scored([f"evaluate={Path(done.folder) / 'config.yaml'}"])


def with_config(path: Path, **changes: object) -> None:
    """Change the config that a checkpoint holds."""
    content = checkpoint.load(path)
    content["config"] = yaml.safe_dump(yaml.safe_load(content["config"]) | changes)
    torch.save(content, path)


def test_another_network_with_the_same_options_is_refused(overrides, done):
    with_config(done.checkpoint, network="mine")
    with pytest.raises(InputError, match=rf"{done.checkpoint} is of another config: leave model out"):
        scored([*overrides, "recipe.epochs=4", "dataset.test_images=301", f"evaluate={done.id}"])


@pytest.mark.parametrize(
    "text", ["", "a: [", "network: os.system", "network: !!python/object/apply:os.getcwd []"], ids=str
)
def test_a_checkpoint_whose_config_is_damaged_is_refused_in_one_sentence(tmp_path, done, text):
    content = checkpoint.load(done.checkpoint)
    torch.save(content | {"config": text}, done.checkpoint)
    with pytest.raises(InputError, match=rf"^{done.checkpoint} has a config that is not one of this project's: .*\.$"):
        scored([f"evaluate={done.id}", f"paths.runs={tmp_path / 'runs'}"])


def test_a_network_that_is_not_in_the_configs_is_refused(tmp_path, done):
    with_config(done.checkpoint, network="mine")
    with pytest.raises(InputError, match=r"^there is no mine in configs/model: copy its file there\.$"):
        scored([f"evaluate={done.id}", f"paths.runs={tmp_path / 'runs'}"])
