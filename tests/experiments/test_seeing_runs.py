"""The commands that list, compare, draw and remove own runs, from a folder of images to a plot."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import demo_runs
import pytest
from stopped_runs import a_signal
from test_command_line import run

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.report import curves
from rst.experiments.runs.catalogue import by_label, find
from rst.experiments.runs.record import Record
from rst.experiments.training import Interrupted, train

sys.path.append(str(Path(__file__).parent / "data"))

from image_tree import make_own_images

Script = Callable[..., int]
TINY = ["dataset=digits", "model=wrn10_1", "device=cpu", "wandb.mode=disabled", "dataset.train_images=64"]
TINY += ["dataset.test_images=50", "recipe.batch_size=16", "recipe.perturbation_batch=16", "recipe.epochs=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of SGD and G-RST, each with two seeds, and of a G-RST that was stopped in its second epoch."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    for words in (["scheme=sgd"], ["scheme=sgd", "seed=1"], ["scheme=grst"], ["scheme=grst", "seed=1"]):
        train(compose([*TINY, f"paths.runs={runs}", *words]), show_progress=False)
    with a_signal(2, "step", 5), pytest.raises(Interrupted):
        train(compose([*TINY, f"paths.runs={runs}", "scheme=grst", "seed=2"]), show_progress=False)
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the records that a test may change."""
    return shutil.copytree(finished, tmp_path / "runs")


# -------------------------------------------------------------------------------------------- from images to a picture


def test_from_a_folder_of_images_to_a_plot_by_three_commands(tmp_path: Path) -> None:
    make_own_images(tmp_path / "pets", images=15)
    paths = ["paths.runs=runs", "paths.cache=cache"]
    small = ["dataset.image_size=32", "augmentation=none", "recipe.batch_size=12", "recipe.epochs=6"]
    own = ["dataset=folder", "dataset.root=pets", "model=timm", "model.name=resnet10t", *small]
    sweep = run(["-m", "scheme=sgd,grst", *own, "device=cpu", "wandb.mode=disabled", *paths], tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stderr.count("9 of the images are test images: pets has no test/ or val/ or valid/, so that") == 1
    errors = [float(error) for error in re.findall(r"test error ([\d.]+) %", sweep.stdout)]
    assert len(errors) == 2
    assert all(error < 34 for error in errors)  # guessing has 67


def test_a_search_needs_held_out_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    words += ["optimizer.lr=interval(0.01,0.1)", *TINY, f"hydra.sweep.dir={tmp_path}", f"paths.runs={tmp_path}/runs"]
    refused = run(words, tmp_path)
    assert refused.returncode == 1
    assert "write dataset.validation=<how many>" in refused.stderr
    assert run([*words, "dataset.validation=16"], tmp_path).returncode == 0
    assert "best_value" in (tmp_path / "optimization_results.yaml").read_text()


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 5),
        (["scheme=grst"], 3),
        (["scheme=sgd,grst", "seed=0"], 2),
        (["scheme=grst", "status=done"], 2),
        (["status=half done"], 1),
        (["schedule.p=0.5"], 3),
        (["optimizer.lr=1e-1", "model=wrn10_1", "dataset=digits", "network=wrn10_1"], 5),
        (["channels_last=false", "autocast=null", "dataset.mean=[0.3]"], 5),
        (["seed=7"], 0),
        (["c2-s0"], 1),
    ],
    ids=str,
)
def test_runs_are_found_by_the_values_of_any_key_and_by_a_part_of_an_id(
    finished: Path, words: list[str], count: int
) -> None:
    assert len(find(finished, words)) == count


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe.epoch=3"], "there is no key recipe.epoch: did you mean recipe.epochs?"),
        (["recipe=cifar"], "recipe is a group of keys"),
        (["nothing"], "there is no run nothing in "),
        (["digits"], "digits is a part of 5 ids in "),
        ([""], "there is no run  in "),
    ],
)
def test_what_finds_no_run_is_answered_by_one_sentence(finished: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        find(finished, words)
    assert str(raised.value).startswith(sentence)


def test_a_name_longer_than_a_path_may_be_is_the_name_of_no_run(finished: Path) -> None:
    with pytest.raises(InputError, match="there is no run xxx"):
        find(finished, ["x" * 5000])


def test_a_folder_that_is_no_run_is_never_removed_though_it_has_a_config(
    finished: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("debug: true")
    assert script("runs", "remove", tmp_path, "--yes", f"paths.runs={finished}") == 1
    assert f"{tmp_path} is no run" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").exists()


def test_a_run_in_another_folder_is_found_by_its_path_and_a_damaged_one_in_its_own_folder(runs: Path) -> None:
    record = find(runs, ["c2-s0"])[0]
    other = record.folder.rename(runs.parent / record.id)
    assert find(runs, [str(other)])[0].folder == other
    damaged = find(runs, ["c2-s1"])[0]
    (damaged.folder / "config.yaml").write_text("debug: true")
    assert find(runs, [damaged.id])[0].folder == damaged.folder


def test_records_that_were_set_aside_are_found_by_their_id_alone(runs: Path) -> None:
    record = find(runs, ["c2-s0"])[0]
    shutil.copytree(record.folder, aside := record.folder.with_name(f"{record.id}.old-1"))
    assert len(find(runs, [])) == 5
    assert find(runs, [aside.name])[0].folder == aside


def test_runs_that_differ_in_their_seed_alone_share_a_label_of_what_tells_them_apart(finished: Path) -> None:
    groups = by_label(find(finished, []))
    assert {label: len(records) for label, records in groups.items()} == {"sgd": 2, "grst": 3}


# ------------------------------------------------------------------------------------------------------------ commands


def test_list_has_a_line_for_each_run_and_compare_what_differs(
    finished: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"paths.runs={finished}"
    assert script("runs", "list", place, "seed=0,2") == 0
    out = capsys.readouterr().out
    assert out.endswith(f"3 runs in {finished}.\n")
    assert re.search(r"grst|c2-s2-\w+ +half done +1/2 ", out)
    assert script("runs", "list", "--mean", "--sort", "test_error", place) == 0
    assert re.search(r"^grst +[\d.]+ ± [\d.]+ .* 2$", capsys.readouterr().out, re.MULTILINE)
    assert script("runs", "compare", place, "seed=0") == 0
    out = capsys.readouterr().out
    assert re.search(r"^scheme.name +(sgd +grst|grst +sgd)$", out, re.MULTILINE)
    assert re.search(r"^extra_propagations_expected +(0 +0.5|0.5 +0) +[+-]0.5$", out, re.MULTILINE)
    assert "paths" not in out


def test_show_has_config_machine_and_results(
    finished: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("runs", "show", "c2-s0", f"paths.runs={finished}") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("status: done", "gamma_ratio: auto", "git_commit", "best_test_error"))


def test_remove_asks_unless_it_is_told_yes(
    runs: Path, script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer, left in (("n", 5), ("y", 4)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        script("runs", "remove", "status=half done", f"paths.runs={runs}")
        assert len(find(runs, [])) == left
    assert script("runs", "remove", "scheme=sgd", "--yes", f"paths.runs={runs}") == 0
    assert {path.name for path in runs.iterdir()} == {record.id for record in find(runs, ["scheme=grst"])}


def test_a_run_that_is_being_trained_is_not_removed(
    runs: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    record = find(runs, ["status=half done"])[0]
    with record.training(record.spec):
        assert script("runs", "remove", record.id, "--yes", f"paths.runs={runs}") == 1
    assert f"run {record.id} is being trained" in capsys.readouterr().err
    assert Record(record.folder).spec


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs", "remove", "seed=9", "--yes"], "no run in {runs} fits seed=9: runs.py list shows all."),
        (["runs", "compare", "c2-s0"], "is one run: write another one"),
        (["runs", "list", "--sort", "x"], "--sort x is no column: write one of status, epochs"),
        (["plot_runs", "seed=9"], "no run in {runs} that fits seed=9 has an epoch on record."),
        (["plot_runs", "nothing"], "there is no run nothing in {runs}"),
        (["plot_runs", "demo", "c2-s0"], "c2-s0 is no table: name tables or runs, not both."),
        (["plot_runs", "scheme=sgd", "--output", "/dev/null/x"], "/dev/null/x.png cannot be written"),
    ],
    ids=str,
)
def test_wrong_commands_are_answered_by_one_sentence(
    finished: Path, script: Script, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert script(*words, f"paths.runs={finished}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{words[0]}.py: ")
    assert sentence.format(runs=finished).replace("seed=9 has", f"seed=9 paths.runs={finished} has") in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs", "show", "--mean", "c2-s0"], "--mean is an option of list, not of show: leave it out."),
        (["runs", "list", "--yes"], "--yes is an option of remove, not of list: leave it out."),
        (["plot_runs", "scheme=sgd", "--output", "/"], "--output / names no file: write one"),
    ],
    ids=str,
)
def test_options_that_a_command_cannot_use_are_refused(
    script: Script, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert script(*words) == 2
    assert f"{words[0]}.py: error: {sentence}" in capsys.readouterr().err


def test_a_damaged_record_has_a_line_in_the_list(
    runs: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    (find(runs, ["c2-s0"])[0].folder / "summary.json").write_text("{")
    assert script("runs", "list", f"paths.runs={runs}") == 0
    assert "damaged" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------- curves


def test_curves_are_the_means_of_the_metrics_and_a_stopped_run_is_drawn_as_far_as_it_got(finished: Path) -> None:
    figure = curves.draw(by_label(find(finished, [])))
    errors = figure.axes[0].lines
    metrics = [record.metrics for record in find(finished, ["scheme=sgd"])]
    means = [sum(run[epoch]["test_error"] for run in metrics) / 2 for epoch in range(2)]
    assert {tuple(line.get_ydata()) for line in errors if len(line.get_ydata()) == 2} == {tuple(means)}
    assert sorted(len(line.get_ydata()) for line in errors) == [1, 2]


def test_the_gate_is_the_share_of_sharp_steps_of_an_epoch(finished: Path) -> None:
    [record] = find(finished, ["scheme=grst", "seed=0"])
    first, second = (line["sharp_steps"] for line in record.metrics)
    gate = curves.draw({"G-RST": [record]}).axes[3].lines[0]
    assert list(gate.get_ydata()) == [100 * first / 4, 100 * (second - first) / 4]


def test_a_plot_of_runs_or_of_a_table_says_where_it_is(
    finished: Path, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plots" / "mine"
    assert script("plot_runs", "scheme=sgd,grst", f"paths.runs={finished}", "--output", output) == 0
    assert capsys.readouterr().out.split() == ["Written:", f"{output}.png", f"{output}.svg"]
    assert output.with_name("mine.png").read_bytes().startswith(b"\x89PNG")
    for planned in demo_runs.demo(tmp_path)[:2]:
        train(planned.spec, show_progress=False)
    assert script("plot_runs", "demo", *demo_runs.TINY, "max_seeds=1", f"paths.runs={tmp_path / 'runs'}") == 0
    assert "SGD" in (tmp_path / "curves" / "demo.svg").read_text()
