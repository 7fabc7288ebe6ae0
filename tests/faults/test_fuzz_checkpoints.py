"""Wrong checkpoints, scored, trained further or begun with, are refused in one sentence, and no code in them runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from .answers import TRAIN, Wrong, answer_all
from .wrong_files import AGAIN, DAMAGES, OWN, damage, evil_pickles, saved

pytestmark = pytest.mark.faults

Content = dict[str, Any]

TOUCH = {"_target_": "shutil.copyfile", "src": "notes.txt", "dst": "canary"}
"""A config that makes the file ``canary`` if what it names is called, as hydra.utils.instantiate does."""


@pytest.fixture
def folder(project: Path) -> Path:
    """The folder of a run that is done, in the project; evil.yaml beside it is a file like those of configs/model."""
    (project / "evil.yaml").write_text(yaml.safe_dump(TOUCH))
    [folder] = (project / "results" / "runs").glob(OWN)
    return folder


def wrong_configs(config: Content, evil: Path) -> dict[str, str]:
    """Texts that are not the config of a run of this project, or that name code."""
    texts = {
        "empty": "",
        "no YAML": "a: [",
        "list": "- a",
        "number": "3",
        "partial": "model: {}",
        "other": "a: 1",
        "cyclic": "&a\nb: *a",
        "a tag that runs code": "a: !!python/object/apply:shutil.copyfile [notes.txt, canary]",
    }
    behind_own = TOUCH | {"_target_": "rst.experiments.models.common.nn.modules.module.torch.hub.shutil.copyfile"}
    options = {"src": "notes.txt", "dst": "canary"}
    changed: dict[str, Content] = {
        "code for the model": {"model": TOUCH},
        "code behind our own": {"model": behind_own},
        "code in the model": {"model": config["model"] | {"depth": TOUCH}},
        "code in a list of the model": {"model": config["model"] | {"more": [TOUCH]}},
        "code in a list of lists": {"model": config["model"] | {"more": [[TOUCH]]}},
        "code that the model refers to": {"model": config["model"] | {"depth": "${evaluate}"}, "evaluate": TOUCH},
        "code that a list refers to": {"model": config["model"] | {"more": ["${evaluate}"]}, "evaluate": TOUCH},
        "code in the schedule": {"schedule": config["schedule"] | {"p": TOUCH}},
        "a network of a file elsewhere": {"network": str(evil.with_suffix("")), "model": options},
        "a network that is a path": {"network": f"../../{evil.stem}", "model": options},
        "a network that is code": {"network": "shutil.copyfile", "model": options},
        "a variant that is code": {"variant": {"name": "shutil.copyfile", "rho": 0.1, **options}},
        "a schedule that is code": {"schedule": {"name": "shutil.copyfile", **options}},
    }
    return texts | {name: yaml.safe_dump({**config, **change}) for name, change in changed.items()}


def wrong_states(state: Content, evil: Path) -> dict[str, bytes]:
    """Checkpoints that torch loads, but that do not hold a network of this project."""
    weights = state["model"]
    models = {"empty": {}, "list": [1], "number": 3, "text": "x", "one": dict(list(weights.items())[:1])}
    models |= {"shapes": {key: value[None] for key, value in weights.items()}, "types": dict.fromkeys(weights, 3)}
    configs = wrong_configs(yaml.safe_load(state["config"]), evil)
    states = {f"config {name}": {**state, "config": text} for name, text in configs.items()}
    for value in (None, 3, [1], {"a": 1}):
        states[f"config of type {type(value).__name__}"] = {**state, "config": value}
    states |= {f"model {name}": {**state, "model": model} for name, model in models.items()}
    states |= {"list": [1], "tensor": torch.zeros(3), "empty": {}, "few": {key: state[key] for key in ("id", "config")}}
    return {name: saved(content) for name, content in states.items()}


def wrong_resumes(state: Content) -> dict[str, bytes]:
    """Checkpoints whose network is right, but from which the run cannot go on."""
    states: Content = {f"without {key}": {k: v for k, v in state.items() if k != key} for key in state}
    del states["without config"], states["without model"], states["without id"]
    states |= {f"{key} a text": {**state, key: "x"} for key in state if key not in ("config", "scaler")}
    states |= {f"{key} null": {**state, key: None} for key in ("counters", "optimizer", "ranks", "model")}
    states |= {f"counters: {key}": {**state, "counters": counters} for key, counters in wrong_counters(state).items()}
    states |= {"another run": {**state, "id": "another"}, "code": {**state, "id": "../../../notes.txt"}}
    return {name: saved(content) for name, content in states.items()}


def wrong_counters(state: Content) -> dict[str, Any]:
    """Counters with a name that is missing, with one too many, and with a step of another type."""
    counters = state["counters"]
    without = {key: value for key, value in counters.items() if key != "step"}
    return {"one more": counters | {"more": 1}, "step a text": counters | {"step": "x"}, "no step": without | {"a": 1}}


def test_scoring_a_wrong_checkpoint_is_refused_in_one_sentence_and_runs_no_code(project: Path, folder: Path) -> None:
    file = folder / "checkpoint.pt"
    wrong = evil_pickles() | wrong_states(torch.load(file, weights_only=True), project / "evil.yaml")
    defects = []
    for name, content in wrong.items():
        file.write_bytes(content)
        found = answer_all([Wrong(TRAIN, [f"evaluate={folder.name}", "device=cpu"])], project)
        defects += [f"{name}: {text}" for text in found]
        (project / "canary").unlink(missing_ok=True)
    assert defects == [], "\n".join(defects)


def wrong_weights(state: Content) -> dict[str, bytes]:
    """Files without the weights of the network, of which some are those of another one."""
    weights = state["model"]
    first = next(iter(weights))
    models: Content = {"empty": {}, "list": [1], "number": 3, "text": "x", "one": {first: weights[first]}}
    models |= {"shapes": {key: value[None] for key, value in weights.items()}, "types": dict.fromkeys(weights, 3)}
    models |= {"other": {"weight": torch.zeros(3)}, "numbers": dict(enumerate(weights.values()))}
    models |= {"nested": {"state_dict": {"state_dict": weights}}, "none": {"model": None}, "lacks": {**weights}}
    del models["lacks"][first]
    return evil_pickles() | {name: saved(model) for name, model in models.items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_beginning_with_wrong_weights_is_refused_in_one_sentence_and_runs_no_code(
    suffix: str, project: Path, folder: Path
) -> None:
    script, words = AGAIN
    file = project / f"weights{suffix}"
    begin = Wrong(script, [*words, f"model.pretrained={file.name}"])
    defects = []
    for name, content in wrong_weights(torch.load(folder / "checkpoint.pt", weights_only=True)).items():
        file.write_bytes(content)
        defects += [f"{name}: {text}" for text in answer_all([begin], project)]
    for kind in DAMAGES:
        shutil.copy(folder / "checkpoint.pt", file)
        damage(file, kind)
        defects += [f"{kind}: {text}" for text in answer_all([begin], project)]
        shutil.rmtree(file) if kind == "folder" else file.unlink()
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


def test_going_on_from_a_wrong_checkpoint_is_refused_in_one_sentence_and_runs_no_code(
    project: Path, folder: Path
) -> None:
    file = folder / "checkpoint.pt"
    (folder / "summary.json").unlink()
    state = torch.load(file, weights_only=True)
    wrong = evil_pickles() | wrong_resumes(state)
    for name, content in wrong_states(state, project / "evil.yaml").items():
        if not name.startswith("config"):  # A run goes on by the config of the command, not by that of the checkpoint.
            wrong[name] = content
    defects = []
    for name, content in wrong.items():
        file.write_bytes(content)
        defects += [f"{name}: {text}" for text in answer_all([Wrong(*AGAIN)], project)]
        (project / "canary").unlink(missing_ok=True)
    assert defects == [], "\n".join(defects)
