"""A user's own images, networks and weights, by config alone: what they mean, that they train, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refusals import refusal
from stopped_runs import a_signal

from rst.experiments.build import build_model
from rst.experiments.compose import compose
from rst.experiments.data import RunData
from rst.experiments.runs.identity import run_id
from rst.experiments.spec import RunSpec
from rst.experiments.training import Interrupted, train

sys.path.append(str(Path(__file__).parent / "data"))

from image_tree import make_image_tree, make_own_images

CPU = torch.device("cpu")
Config = Callable[..., RunSpec]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three classes, each of 15 images, without splits."""
    return make_own_images(tmp_path_factory.mktemp("pets") / "pets", images=15)


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Config:
    """The spec of a small network on those images; further overrides win."""
    paths = [f"paths.{key}={tmp_path / key}" for key in ("cache", "runs")]
    small = ["dataset.image_size=32", "model=wrn10_1", "augmentation=none", "recipe.batch_size=12", "recipe.epochs=2"]
    return lambda *more: compose(
        ["dataset=folder", f"dataset.root={images}", *small, "device=cpu", "wandb.mode=disabled", *paths, *more]
    )


# ---------------------------------------------------------------------------------------------------------- the images


def test_classes_images_and_digest_follow_from_the_folder_so_that_a_record_is_complete(own: Config) -> None:
    data = own().dataset
    assert (data.num_classes, data.train_images, data.test_images) == (3, 36, 9)
    assert data.digest == RunData(own(), CPU).source.digest
    assert own().model.options["num_classes"] == 3


def test_without_test_images_a_fifth_of_each_class_is_held_out_always_the_same(own: Config) -> None:
    data = RunData(own(), CPU)
    test, train_images = ({*split.names.tolist()} for split in (data.splits["test"], data.train))
    assert torch.bincount(data.splits["test"].labels).tolist() == [3, 3, 3]
    assert not test & train_images
    again = RunData(own("seed=3", "dataset.train_images=20"), CPU)
    assert {*again.splits["test"].names.tolist()} == test


def test_an_image_that_is_added_moves_no_other_one_of_another_class(own: Config, tmp_path: Path) -> None:
    root = make_own_images(tmp_path / "more", images=15)
    before = {*RunData(own(f"dataset.root={root}"), CPU).splits["test"].names.tolist()}
    (root / "cat" / "new.png").write_bytes((root / "cat" / "0.png").read_bytes())
    after = {*RunData(own(f"dataset.root={root}"), CPU).splits["test"].names.tolist()}
    assert {name for name in before ^ after if not name.startswith(b"cat/")} == set()


@pytest.mark.parametrize("name", ["val", "test", "valid"])
def test_images_of_their_own_are_the_test_images_whatever_their_folder_is_called(
    own: Config, tmp_path: Path, name: str
) -> None:
    root = make_image_tree(tmp_path / "tree")
    as_imagenet = RunData(own(f"dataset.root={root}"), CPU).source.digest
    (root / "val").rename(root / name)
    spec = own(f"dataset.root={root}")
    assert (spec.dataset.train_images, spec.dataset.test_images) == (30, 12)
    assert spec.dataset.digest == as_imagenet


def test_a_folder_of_test_images_without_classes_is_passed_over(own: Config, tmp_path: Path) -> None:
    """As where the test images of a competition have no labels."""
    root = make_image_tree(tmp_path / "tree")
    (root / "test").mkdir()
    (root / "test" / "0.png").touch()
    assert own(f"dataset.root={root}").dataset.test_images == 12


def test_a_training_folder_alone_is_divided(own: Config, images: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(images)
    assert own(f"dataset.root={tmp_path}").dataset.test_images == 9


def test_other_images_are_another_run_and_a_copy_elsewhere_is_the_same(own: Config, tmp_path: Path) -> None:
    copy = make_own_images(tmp_path / "copy", images=15)
    assert run_id(own(f"dataset.root={copy}")) == run_id(own())
    Image.new("RGB", (40, 30)).save(copy / "emu" / "0.png")
    assert run_id(own(f"dataset.root={copy}")) != run_id(own())


def test_a_scale_that_asks_for_more_images_than_there_are_gets_all(own: Config) -> None:
    spec = own("scale=smoke", "recipe.perturbation_batch=12")
    assert (spec.dataset.source, spec.dataset.train_images, spec.dataset.test_images) == ("auto", 36, 9)


# -------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    "network",
    [
        "model=timm model.name=resnet10t",
        "model=timm model.name=vit_tiny_patch16_224",  # whose position embedding follows dataset.image_size
        "model=timm model.name=resnet10t +model.drop_rate=0.1",
        "model=torchvision model.name=mobilenet_v3_small",
    ],
)
def test_a_network_of_a_library_gets_the_classes_and_the_images_of_the_data_set(own: Config, network: str) -> None:
    model = build_model(own(*network.split()), CPU)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_network_of_timm_takes_any_channels(config: Config) -> None:
    model = build_model(config("model=timm", "model.name=resnet10t"), CPU)  # of the digits, in grey
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_building_a_network_changes_none_of_its_buffers_and_draws_the_weights_of_the_seed(own: Config) -> None:
    spec = own("model=timm", "model.name=resnet10t")
    one, other = build_model(spec, CPU), build_model(spec, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(not buffer.any() for name, buffer in one.named_buffers() if "running_mean" in name)


def test_the_name_and_the_options_of_a_network_are_in_the_id(own: Config) -> None:
    names = [["model.name=resnet10t"], ["model.name=resnet18"], ["model.name=resnet18", "+model.drop_rate=0.1"]]
    ids = [run_id(own("model=timm", *words)) for words in names]
    assert len({*ids}) == 3
    assert ids[1].startswith("folder-timm-resnet18-n36-")


# --------------------------------------------------------------------------------------------------------- the weights


def saved(model: torch.nn.Module, file: Path) -> Path:
    torch.save(model.state_dict(), file)
    return file


def body(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights without those of the head."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(("fc.", "head."))}


@pytest.mark.parametrize("kind", ["plain", "checkpoint", "parallel", "safetensors", "without a head"])
def test_a_network_begins_with_the_weights_of_a_file_and_a_head_of_its_own(
    own: Config, config: Config, tmp_path: Path, kind: str
) -> None:
    start = build_model(own("model=timm", "model.name=resnet10t", "seed=9"), CPU)
    start.reset_classifier(7)
    state, file = start.state_dict(), tmp_path / "weights.pt"
    if kind == "plain":
        saved(start, file)
    elif kind == "checkpoint":
        torch.save({"state_dict": state, "epoch": 3}, file)
    elif kind == "parallel":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, file)
    elif kind == "without a head":
        torch.save(body(start), file)
    else:
        from safetensors.torch import save_file

        save_file(state, file := tmp_path / "weights.safetensors")
    model = build_model(own("model=timm", "model.name=resnet10t", f"model.pretrained={file}"), CPU)
    assert all(torch.equal(value, state[name]) for name, value in body(model).items())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_the_weights_of_a_run_are_where_another_one_begins(own: Config) -> None:
    first = train(own("recipe.epochs=1"), show_progress=False)
    spec = own(f"model.pretrained={first.checkpoint}", "seed=1")
    trained = torch.load(first.checkpoint, weights_only=True)["model"]
    model = build_model(spec, CPU)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_the_digest_of_the_weights_is_in_the_id_and_their_place_is_not(own: Config, tmp_path: Path) -> None:
    file, other = tmp_path / "a.pt", tmp_path / "b.pt"
    saved(build_model(own(), CPU), file)
    other.write_bytes(file.read_bytes())
    assert run_id(own(f"model.pretrained={file}")) == run_id(own(f"model.pretrained={other}")) != run_id(own())
    saved(build_model(own("seed=1"), CPU), other)
    assert run_id(own(f"model.pretrained={file}")) != run_id(own(f"model.pretrained={other}"))


# ------------------------------------------------------------------------------------------------------------ the runs

TIMM = ("model=timm", "model.name=resnet10t")


def test_own_images_and_network_learn_well_above_chance_by_sgd_and_grst(own: Config) -> None:
    for scheme in ("sgd", "grst"):
        record = train(own(*TIMM, f"scheme={scheme}", "recipe.epochs=6"), show_progress=False)
        assert record.summary["test_error"] < 34  # guessing has 67


def test_a_run_on_own_images_that_was_stopped_ends_as_if_it_had_not(own: Config, tmp_path: Path) -> None:
    def weights(runs: str, stop: bool) -> dict[str, torch.Tensor]:
        spec = own(*TIMM, f"paths.runs={tmp_path / runs}")
        if stop:
            with a_signal(2, "step", 2), pytest.raises(Interrupted):
                train(spec, show_progress=False)
        return torch.load(train(spec, show_progress=False).checkpoint, weights_only=True)["model"]

    whole, stopped = weights("whole", False), weights("stopped", True)
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_two_ranks_train_the_run_of_one(own: Config, tmp_path: Path) -> None:
    words = ["recipe.perturbation_batch=6", "recipe.epochs=1"]
    alone = train(own(*words), show_progress=False)
    both = train(own(*words, "devices=2", f"paths.runs={tmp_path / 'two'}"), show_progress=False)
    assert both.id == alone.id
    assert both.summary["test_loss"] == pytest.approx(alone.summary["test_loss"], rel=1e-3)


def test_a_network_that_began_with_weights_is_scored_without_them_on_the_images_of_its_record(
    own: Config, tmp_path: Path, command: Callable[..., Any]
) -> None:
    file = saved(build_model(own(), CPU), tmp_path / "start.pt")
    record = train(own(f"model.pretrained={file}"), show_progress=False)
    file.unlink()
    process, output = command(f"evaluate={record.id}", f"paths.runs={tmp_path / 'runs'}")
    process.join()
    assert f"test error {record.summary['test_error']:.4g} %" in output.read_text()


# ------------------------------------------------------------------------------------------------------ what is refused

REFUSED_AT_ONCE = [
    ("dataset.root=null", "dataset.root=null: write dataset.root=<folder, with a folder of images for each class>."),
    ("dataset.root=3", "dataset.root=3: write dataset.root=<folder"),
    ("dataset.root={tmp}/nowhere", "dataset.root={tmp}/nowhere is not a folder"),
    ("dataset.root={tmp}/empty", "{tmp}/empty has no class folders: move each image to {tmp}/empty/<class>/."),
    ("dataset.root={tmp}/single", "{tmp}/single has one folder of images: give one for each of at least two classes."),
    ("dataset.root={tmp}/few", "{tmp}/few/cat has one image, and needs two"),
    ("dataset.root={tmp}/hollow", "{tmp}/hollow/dog has no images"),
    ("dataset.root={tmp}/half", "{tmp}/half/val has no folder train beside it"),
    ("dataset.root={tmp}/unlike", "{tmp}/unlike/train has the class n02 and {tmp}/unlike/val does not"),
    ("dataset.source=parquet", "dataset.source=parquet has no effect on dataset=folder"),
    ("dataset.source=digits", "dataset.source=digits: leave one of the two out"),
    ("dataset.channels=1 dataset.mean=[0] dataset.std=[1]", "images in files are read in colour"),
    ("dataset.validation=1000", "dataset.validation=1000 leaves none of dataset.train_images="),
    ("recipe.batch_size=64", "recipe.batch_size=64 is larger than the 36 training images"),
    ("scale=cpu", "scale=cpu has no folder, only cifar10, cifar100"),
    ("model=timm", "model.name is missing: write model.name=<value>."),
    ("model=wrn10_1 model.name=resnet18", "write model=timm model.name=<a network>."),
    ("model=timm model.name=3", "model.name=3: write a text."),
    ("model.pretrained=false", "model.pretrained=False: write null, the path of a file, or true."),
    ("model.pretrained={tmp}/nowhere.pt", "{tmp}/nowhere.pt cannot be read (No such file or directory)"),
    ("model.pretrained={tmp}", "{tmp} cannot be read"),
]


@pytest.fixture
def wrong_folders(tmp_path: Path) -> Path:
    """Folders of images that lack something."""
    (tmp_path / "empty").mkdir()
    make_own_images(tmp_path / "single", 3, ("cat",))
    make_own_images(tmp_path / "few", 1)
    (make_own_images(tmp_path / "hollow", 1, ("cat",)) / "dog").mkdir()
    (tmp_path / "half" / "val").mkdir(parents=True)
    unlike = make_image_tree(tmp_path / "unlike")
    (unlike / "val" / "n02").rename(unlike / "val" / ".n02")
    return tmp_path


@pytest.mark.parametrize(("words", "sentence"), REFUSED_AT_ONCE)
def test_wrong_images_and_networks_are_refused_in_one_sentence(
    own: Config, wrong_folders: Path, words: str, sentence: str
) -> None:
    said = refusal(lambda: own(*words.format(tmp=wrong_folders).split()))
    assert sentence.format(tmp=wrong_folders) in said


REFUSED_AT_THE_START = [
    ("dataset.num_classes=4", "has 3 classes: write dataset.num_classes=3."),
    ("dataset.train_images=99", "dataset.train_images=99, but there are only 36 images"),
    ("model=timm model.name=resnet10", "model.name=resnet10 is no network of timm: did you mean "),
    ("model=torchvision model.name=resnet10", "model.name=resnet10 is no network of torchvision: did you mean "),
    ("model=timm model.name=resnet10t.nothing", "model.name=resnet10t.nothing is no network of timm: did you mean "),
    ("model=timm model.name=resnet10t +model.nothing=1", "or not model.nothing=1 (ResNet.__init__() got an unexpected"),
    ("model=timm model.name=resnet10t +model.block=basic", "or not model.block=basic ('str' object has no attribute"),
    ("model=torchvision model.name=resnet18 +model.norm_layer=x", "): leave that out, or take another dataset.image_"),
    ("model=timm model.name=vit_tiny_patch16_224 dataset.image_size=8", "does not take images of dataset.image_size=8"),
    ("model=torchvision model.name=alexnet", "model.name=alexnet does not take images of dataset.image_size=32"),
    (
        "model.pretrained=true",
        "model.pretrained=true, but there are no weights of wrn10_1 to download: write model.pre",
    ),
    ("model.pretrained={tmp}/text.pt", "{tmp}/text.pt has no weights that torch.load can read"),
    ("model.pretrained={tmp}/list.pt", "{tmp}/list.pt has no weights by name: save model.state_dict()."),
    ("model.pretrained={tmp}/numbers.pt", "{tmp}/numbers.pt has no weights by name: save model.state_dict()."),
    ("model.pretrained={tmp}/other.pt", "{tmp}/other.pt does not fit the network: weight is [3, 4] there and missing"),
    ("model.pretrained={tmp}/list.pt model.pretrained_digest=abc", "not model.pretrained_digest=abc"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED_AT_THE_START)
def test_what_shows_only_when_the_network_is_built_is_refused_before_a_record_is_made(
    own: Config, tmp_path: Path, words: str, sentence: str
) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({0: torch.zeros(3)}, tmp_path / "numbers.pt")
    saved(torch.nn.Linear(4, 3), tmp_path / "other.pt")
    spec = own(*words.format(tmp=tmp_path).split())
    assert sentence.format(tmp=tmp_path) in refusal(lambda: train(spec, show_progress=False))
    assert not Path(spec.paths.runs).exists()


def test_a_damaged_image_is_named_by_the_script_that_shows_images(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_own_images(tmp_path / "pets", images=3)
    for file in root.glob("cat/*"):
        file.write_bytes(b"no image")
    words = ["dataset=folder", f"dataset.root={root}", f"paths.cache={tmp_path}", "recipe.batch_size=6", "device=cpu"]
    assert script("show_augmentation", *words, "--output", tmp_path / "seen.png") == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"show_augmentation.py: {root}/cat/")
    assert "cannot be decoded" in sentence
    assert not (tmp_path / "seen.png").exists()


def test_weights_that_cannot_be_downloaded_are_one_sentence(own: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    spec = own("model=torchvision", "model.name=mobilenet_v3_small", "model.pretrained=true")
    said = refusal(lambda: build_model(spec, CPU))
    assert (
        "model.pretrained=true finds no weights for model.name=mobilenet_v3_small (the network is unreachable)" in said
    )


def test_weights_with_code_in_them_run_nothing(own: Config, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Code()}, tmp_path / "code.pt")
    assert "has no weights" in refusal(lambda: build_model(own(f"model.pretrained={tmp_path / 'code.pt'}"), CPU))
    assert not (tmp_path / "ran").exists()
