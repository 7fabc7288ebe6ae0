"""What is refused before any work: in one sentence, which names key, value and fix."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refusal

from rst.experiments.compose import CONFIGS, builder_of, compose, refuse_without_effect, validated
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import load_table
from rst.experiments.training import train

# A command, and what the sentence must say: key, value and fix.
REFUSED_AT_ONCE = [
    # options and parameters that the schedule or the variant does not take
    ("+schedule.foo=1", "schedule.foo is not an option of constant", "leave it out"),
    ("+variant.foo=1", "variant.foo is not an option of SAM", "leave it out"),
    ("schedule.p=1.5", "schedule: p", "1.5", "[0, 1]"),
    ("schedule.p=-0.1", "schedule: p", "-0.1", "[0, 1]"),
    ("schedule=piecewise schedule.b=2", "schedule: b", "2", "[0, 1]"),
    ("schedule=periodic schedule.k=0", "schedule: k", "0", "an integer >= 1"),
    ("schedule.p=half", "schedule: p", "half", "[0, 1]"),
    ("schedule.p=[0.1,0.2]", "schedule: p", "0.1, 0.2", "[0, 1]"),
    # keys that contradict each other
    ("scale=cpu dataset=imagenet model=resnet50", "scale=cpu", "imagenet", "only cifar10, cifar100"),
    ("scheme=sam schedule=constant", "scheme=sam", "constant(p=0.5)", "leave the schedule out"),
    ("scheme=sgd schedule.p=0.5 schedule=constant", "scheme=sgd", "constant(p=0.5)", "leave the schedule out"),
    ("scheme=sam scheme.gamma_ratio=2", "scheme.gamma_ratio=1, not 2", "scheme=gnr"),
    ("scheme=rst scheme.gamma_ratio=2", "scheme.gamma_ratio=1, not 2", "scheme=grst"),
    ("scheme=gnr scheme.gamma_ratio=auto", "scheme.gamma_ratio=auto", "give a number"),
    ("dataset=digits dataset.root=x", "dataset.root has no effect on dataset=digits", "leave dataset.root out"),
    ("dataset=digits paths.data=x", "paths.data has no effect on dataset=digits", "leave paths.data out"),
    ("dataset.source=digits dataset.root=x", "dataset.root has no effect with dataset.source=digits", "leave one of"),
    ("scale=smoke dataset.source=digits paths.data=x", "paths.data has no effect with dataset.source=digits", "leave"),
    ("scheme=grst schedule=never", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    ("scheme=grst schedule.p=0", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    ("scheme=grst schedule=tail schedule.fraction=0", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    # a device of no kind, also of a run that is done
    ("device=gpu", "device=gpu", "write auto, cpu, cuda, cuda:1, mps"),
    ("recipe.batch_size=60000", "recipe.batch_size=60000", "50000", "a smaller batch"),
    ("dataset.validation=49900", "recipe.batch_size=256", "100 training images", "a smaller batch"),
    ("recipe.perturbation_batch=60", "recipe.perturbation_batch=60", "recipe.batch_size=256", "a divisor"),
    ("recipe.perturbation_batch=512", "recipe.perturbation_batch=512", "recipe.batch_size=256", "a divisor"),
    ("devices=3", "devices=3", "the 4 perturbations", "take devices=1 or 2 or 4, or a smaller recipe.perturbation_"),
    ("devices=2 recipe.perturbation_batch=null", "devices=2", "the 1 perturbations", "take devices=1, or"),
    ("recipe.warmup_epochs=201", "recipe.warmup_epochs=201", "recipe.epochs=200", "shorten the warm-up"),
    ("model=vit_s recipe.epochs=30", "recipe.warmup_epochs=40", "recipe.epochs=30", "shorten the warm-up"),
    ("dataset.channels=2", "dataset.channels=2", "dataset.mean"),
    ("model.num_classes=7", "model.num_classes=7", "dataset.num_classes=10", "leave model.num_classes out"),
    ("model.pretrained_digest=abc", "model.pretrained_digest=abc has no effect", "write model.pretrained=<the file"),
    ("model=vgg16_bn model.blocks=[2,2]", "model.blocks=[2, 2]", "model.widths=[64, 128", "one width for each stage"),
    # code that a command names
    ("model._target_=torch.nn.Linear", "model._target_=torch.nn.Linear", "configs/model/resnet18.yaml", "model=<"),
    ("optimizer._target_=os.system", "optimizer._target_=os.system", "configs/optimizer/sgd.yaml", "optimizer=<"),
    ("+schedule._target_=os.system", "schedule._target_ is not an option of constant", "leave it out"),
    # names without the keys that belong to them
    ("network=foo", "network=foo changes a name", "write model=<one of pyramidnet164, ", "wrn28_10>."),
    ("network=wrn28_10", "network=wrn28_10 changes a name", "write model=wrn28_10."),
    ("optimizer.name=adamw", "optimizer.name=adamw changes a name", "write optimizer=adamw."),
    ("optimizer.name=lion", "optimizer.name=lion changes a name", "write optimizer=<one of adamw, sgd>."),
    ("variant.name=asam", "variant.name=asam changes a name", "write variant=asam."),
    ("dataset.name=cifar100", "dataset.name=cifar100 changes a name", "write dataset=cifar100."),
    ("scheme.name=sgd", "scheme.name=sgd changes a name", "write scheme=sgd."),
    # values in place of the keys of a group
    ("wandb=null", "wandb=null: wandb is a group of keys: write wandb.mode=<value>."),
    ("wandb=disabled", "wandb=disabled: wandb is a group of keys: write wandb.mode=<value>."),
    ("paths=3", "paths=3: paths is a group of keys: write paths.data=<value>."),
    ("slurm=null", "slurm=null: slurm is a group of keys: write slurm.<key>=<value>."),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in REFUSED_AT_ONCE])
def test_bad_config_is_refused_in_one_sentence_with_key_value_and_fix(command: str, words: list[str]) -> None:
    message = refusal(lambda: compose(command.split()))
    assert [word for word in words if word not in message] == []


WITHOUT_EFFECT = [
    ("scheme=sgd variant=asam", "variant=asam has no effect", "scheme=sgd on schedule", "take scheme=sam"),
    ("scheme=sgd variant.rho=0.2", "variant.rho=0.2 has no effect", "takes no sharp step", "leave it out"),
    ("scheme=sgd recipe.rho=0.2", "recipe.rho=0.2 has no effect", "takes no sharp step", "leave it out"),
    ("scheme=sgd scheme.gamma_ratio=2", "scheme.gamma_ratio=2 has no effect", "leave it out"),
    ("scheme=sgd scheme.normalise_clean=true", "scheme.normalise_clean=true has no effect", "leave it out"),
    ("scheme=rst schedule.p=0 variant=gsam", "variant=gsam has no effect", "scheme=rst on schedule constant(p=0"),
    ("scheme=sgd variant=ssam_f ++variant.samples=3", "variant=ssam_f has no effect", "leave it out"),
    ("scheme=sam scheme.normalise_clean=true", "scheme.normalise_clean=true has no effect", "c = 1", "scheme=grst"),
    ("scheme=rst ++scheme.normalise_clean=true", "scheme.normalise_clean=true has no effect", "c = 1", "scheme=gnr"),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in WITHOUT_EFFECT])
def test_an_option_without_effect_in_the_command_of_a_run_is_refused(command: str, words: list[str]) -> None:
    spec = compose(command.split())
    message = refusal(lambda: refuse_without_effect(spec, command.split()))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "command",
    [
        "scheme=sgd",
        "scheme=sgd recipe=single_gpu",
        "scheme=sam variant=asam variant.rho=0.2",
        "scheme=gnr scheme.gamma_ratio=0.5 scheme.normalise_clean=true recipe.perturbation_batch=null",
        "scheme=rst schedule.p=0.1 recipe.rho=0.2",
    ],
)
def test_an_option_with_an_effect_and_what_groups_set_is_taken(command: str) -> None:
    refuse_without_effect(compose(command.split()), command.split())


def test_overrides_of_a_table_are_for_all_of_its_rows_though_some_do_not_use_them() -> None:
    table = load_table("table03", ["scale=smoke", "variant=asam", "variant.rho=0.2"])
    assert {"sgd", "sam"} <= {cell.spec.scheme.name for cell in table.cells}


def test_folder_of_records_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    message = refusal(lambda: compose([f"paths.runs={tmp_path / 'runs'}"]))
    assert message == f"paths.runs={tmp_path / 'runs'} is a file: write paths.runs=<folder>."


# As above, of what shows only when device, data, network and optimizer are built. {tmp} is an empty folder.
REFUSED_AT_THE_START = [
    ("device=cuda:99", "device=cuda:99", "device=cpu"),
    ("dataset.train_images=5000", "dataset.train_images=5000", "1000", "write 1 to 1000"),
    ("dataset.test_images=5000", "dataset.test_images=5000", "797", "write 1 to 797"),
    ("dataset.num_classes=5", "dataset.num_classes=5", "label"),
    ("dataset.digest=0123", "dataset.digest=0123", "digits", "leave dataset.digest out"),
    ("dataset=cifar10 dataset.root={tmp}/nowhere", "no folder {tmp}/nowhere", "write dataset.root=<"),
    ("dataset=cifar10 dataset.root={tmp} dataset.source=parquet", "{tmp}/cifar10/*", "write dataset.root=<folder"),
    ("augmentation.cutout=40", "augmentation.cutout=40", "0 (off) to 8"),
    ("augmentation.crop_padding=8", "augmentation.crop_padding=8", "0 to 7"),
    ("model=vgg16_bn", "dataset.image_size", "at least 32", "8", "model=resnet18"),
    ("model=resnet50", "dataset.image_size", "at least 64", "8", "model=resnet18"),
    ("model=vit_ti dataset.image_size=30", "model.patch_size=4", "dataset.image_size=30", "divides"),
    ("model.depth=17", "model.depth", "17", "16, 22"),
    ("model=pyramidnet164 model.depth=100", "model.depth", "100", "9n + 2"),
    ("+model.foo=1", "model.foo is not an option of WideResNet: leave it out."),
    ("optimizer.momentum=0", "optimizer", "Nesterov momentum"),
    ("+optimizer.foo=1", "optimizer.foo is not an option of SGD: leave it out."),
    ("paths.runs={tmp}/file/runs", "paths.runs={tmp}/file/runs", "cannot be written", "write paths.runs=<folder>"),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in REFUSED_AT_THE_START])
def test_bad_data_network_or_folder_is_refused_in_one_sentence_before_a_record_is_made(
    command: str, words: list[str], config: Callable[..., RunSpec], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    spec = config(*command.format(tmp=tmp_path).split())
    message = refusal(lambda: train(spec, show_progress=False))
    assert [word for word in words if word.format(tmp=tmp_path) not in message] == []
    assert not Path(spec.paths.runs).exists()


def test_damaged_parquet_file_is_refused_by_name(config: Callable[..., RunSpec], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1 and then nonsense")
    spec = config("dataset=cifar10", f"dataset.root={tmp_path / 'data'}")
    message = refusal(lambda: train(spec, show_progress=False))
    assert str(folder / "train-00000-of-00001.parquet") in message
    assert "copy or download it again" in message
    assert not Path(spec.paths.runs).exists()


# ------------------------------------------------------------------------------ code that a config from elsewhere names


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "variant"])
@pytest.mark.parametrize(
    "option", [{"_target_": "os.system"}, [{"_target_": "os.system"}], [[{"_target_": "os.system"}]]], ids=str
)
def test_saved_config_with_code_in_an_option_is_refused_and_the_code_is_not_called(
    group: str, option: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", lambda *arguments: pytest.fail("the code was called"))
    plain = compose(["scheme=rst"]).dump()
    plain[group]["option"] = option
    message = refusal(lambda: validated(yaml.safe_load(yaml.safe_dump(plain))))
    assert message.startswith(f"{group}.option=")
    assert "write a number, a text, true, false or a list" in message


@pytest.mark.parametrize(
    ("group", "key"), [("model", "network"), ("optimizer", "optimizer.name"), ("schedule", "schedule.name")]
)
@pytest.mark.parametrize("name", ["os.system", "../../../elsewhere/mine", "torch.hub.load"])
def test_name_in_a_saved_config_is_looked_up_in_the_configs_of_this_project_alone(
    group: str, key: str, name: str, config: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", lambda *arguments: pytest.fail("the code was called"))
    plain = config().dump()
    (plain if group == "model" else plain[group])["network" if group == "model" else "name"] = name
    message = refusal(lambda: train(validated(plain), show_progress=False))
    assert name in message
    assert not Path(plain["paths"]["runs"]).exists()


@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_name_that_leads_out_of_the_configs_is_refused_though_its_file_exists(group: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("_target_: os.system")
    name = os.path.relpath(tmp_path / "mine", CONFIGS / group)
    message = refusal(lambda: builder_of(group, name))
    assert message == f"there is no {name} in configs/{group}: copy its file there."


def test_target_in_a_saved_config_builds_nothing(config: Callable[..., RunSpec]) -> None:
    """A text among the options of a network is no more than an argument, which the network does not know."""
    plain = config().dump()
    plain["model"]["_target_"] = "os.system"
    message = refusal(lambda: train(validated(plain), show_progress=False))
    assert "_target_" in message
