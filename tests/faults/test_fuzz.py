"""Wrong command lines and wrong files by the hundred: each is answered by one sentence, and nothing is written over."""

import contextlib
import io
import json
import os
import pickle
import random
import re
import runpy
import shutil
import string
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from PIL import Image

from rst.data.cifar import SPECS
from rst.experiments import sweep
from rst.experiments.config import CONFIGS, RULES
from rst.experiments.sweep import load_table
from rst.training import train

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
TRAIN, SWEEP, REPORT = "train.py", "scripts/sweep.py", "scripts/report.py"
PREPARE, SHOW, IMPORT = "scripts/prepare_data.py", "scripts/show_augmentation.py", "scripts/import_wandb.py"

TINY = ["dataset=digits", "model=wrn10_1", "device=cpu", "wandb.mode=disabled", "recipe.epochs=1"]
TINY += ["dataset.train_images=64", "dataset.test_images=50", "recipe.batch_size=16", "recipe.perturbation_batch=8"]
TABLE = f"""title: Two schemes
draw: summary
seeds: 1
overrides: [{", ".join(TINY)}]
rows:
  SGD: [scheme=sgd]
  G-RST[70%]: [scheme=grst, schedule.p=0.7]
"""


# ------------------------------------------------------------------------------------------- how a command is answered


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass
class Wrong:
    """A wrong command."""

    script: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.script} {' '.join(map(ascii, self.arguments))}"[:300]


def run(script: str, arguments: Iterable[str]) -> Answer:
    """The command, in this process: what it prints, with the traceback and the warnings that a user would see."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [script, *arguments]
    HydraConfig.instance().cfg = None  # as in a process that begins
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("default", UserWarning)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except Exception:
            traceback.print_exc()
            code = 1
    own = [f"{warning.filename}: {warning.message}\n" for warning in seen if "rst" in Path(warning.filename).parts]
    return Answer(code, out.getvalue(), "".join(own) + err.getvalue())


def defect(script: str, answer: Answer) -> str:
    """What is wrong with the answer to a wrong command; empty where nothing is."""
    name = Path(script).name
    err = re.sub(r"\r[^\n]*\r +\r(?=\w+\.py: )", "", answer.err)  # a bar that was wiped off
    lines = re.sub(r"\r[^\n]*(\n(?=\r|\Z|\w+\.py: )|(?=\n))", "", err).splitlines()
    if answer.code == 0:
        return "was taken as right"
    if "Traceback" in answer.err:
        return "ended in a traceback: " + lines[-1]
    if answer.code == 2:  # of argparse, which shows the usage before its sentence
        head = "\n".join(lines[:-1])
        good = re.fullmatch(r"usage: .*(\n +.*)*", head) and lines[-1].startswith(f"{name}: error: ")
        return "" if good else f"is no usage error: {answer.err!r}"
    if len(lines) != 1:
        return f"has {len(lines)} lines on stderr: {answer.err[:600]!r}"
    if not lines[0].startswith(f"{name}: ") or not lines[0].endswith((".", "?", ")")):
        return f"is no sentence of {name}: {lines[0][:600]!r}"
    return ""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below the folder, byte for byte; None for a folder or for what cannot be read."""
    found = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.name != ".lock"):
        try:
            found[str(path)] = path.read_bytes()
        except OSError:
            found[str(path)] = None
    return found


def answer_all(wrong: Iterable[Wrong], folder: Path) -> list[str]:
    """The defects of the answers, with the commands; and what a command changed in the folder."""
    defects = []
    for command in wrong:
        before = contents(folder)
        found = defect(command.script, run(command.script, command.arguments))
        after = contents(folder)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path, "") != after.get(path, ""))
        if changed:
            found += f" and changed {changed}"
        if found:
            defects.append(f"{command} {found}")
    return defects


# ------------------------------------------------------------------------------------------------------- the project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as one works in: two finished records, the files of a report, table files, and a data cache."""
    folder = tmp_path_factory.mktemp("finished")
    tables = folder / "configs" / "tables"
    tables.mkdir(parents=True)
    (tables / "two.yaml").write_text(TABLE)
    cache = folder / "data" / "cache"
    cache.mkdir(parents=True)
    (cache / "cifar100.pt").write_bytes(b"stands for the cache of CIFAR-100")
    (folder / "notes.txt").write_text("of the user")
    with pytest.MonkeyPatch.context() as patch:
        _work_in(folder, patch)
        for job in load_table("two").jobs:
            train(job.cfg, show_progress=False)
        assert run(REPORT, ["two", "--page"]).code == 0
    assert {path.name for path in (folder / "results").iterdir()} >= {"runs", "tables", "figures", "report.html"}
    return folder


def _work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setattr(sweep, "TABLES", folder / "configs" / "tables")
    patch.setenv("HYDRA_FULL_ERROR", "1")  # train.py sets it, and it would stay
    patch.delenv("RST_DATA", raising=False)
    for proxy in ("http_proxy", "https_proxy"):  # there is no network
        patch.setenv(proxy, "http://127.0.0.1:9")
    patch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder to work in, which a test may damage."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    _work_in(folder, monkeypatch)
    return folder


# --------------------------------------------------------------------------------------------------- wrong key=value

VALUES = [
    *(
        "-1",
        "0",
        "-0.5",
        "1.5",
        "2.5",
        "1e999",
        "nan",
        "-inf",
        "true",
        "null",
        "two",
        "''",
        "' '",
        "[1,2]",
        "[]",
        "{a:1}",
    ),
    *("{}", "ünï", '"a\\nb"', "'1'", "1_0", "0x10", "99999999999999999999", "1e-400", "x" * 5000, "/", "$HOME", "٣"),
]
BROKEN = ["${nowhere}", "${seed", "???", "${oc.env:NOT_SET}", "${steps:x}", "${ratio:1,0}"]
"""Values that are wrong for every key."""


def wrong_values(key: str, count: int, draw: random.Random) -> list[str]:
    """Values that the rule of the key does not allow, and one that no key may have."""
    parser = OverridesParser.create()

    def fits(text: str) -> bool:
        try:
            return RULES[key][0](parser.parse_override(f"{key}={text}").value())
        except HydraException:
            return False

    refused = [text for text in VALUES if not fits(text)]
    return [*draw.sample(refused, min(count, len(refused))), draw.choice(BROKEN)]


def network_with(key: str) -> list[str]:
    """The override that chooses a network with this key."""
    if not key.startswith("model."):
        return []
    files = sorted((CONFIGS / "model").glob("*.yaml"))
    return [f"model={next(file.stem for file in files if key.split('.')[1] in OmegaConf.load(file))}"]


def of_every_key(draw: random.Random) -> Iterator[Wrong]:
    for key in RULES:
        top = "." not in key  # which costs a composition each
        for value in wrong_values(key, 1 if top else 3, draw):
            script, names = draw.choice([(TRAIN, []) if top else (SHOW, []), (SHOW, []), (IMPORT, ["nowhere"])])
            yield Wrong(script, [*names, *network_with(key), f"{key}={value}"])


def of_misspelt_keys(draw: random.Random) -> Iterator[Wrong]:
    for key in draw.sample(sorted(RULES), 24):
        at = draw.randrange(1, len(key))
        edits = [key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "q" + key[at:], key.upper()]
        edits += [key + ".more", key + "s"]
        misspelt = draw.choice([edit for edit in edits if edit not in RULES])
        script, names = draw.choice([(SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"]), (IMPORT, ["nowhere"])])
        yield Wrong(script, [*names, f"{misspelt}=1"])


OTHER_VALUES = [
    *("dataset.mean=3", "dataset.mean=null", "dataset.mean=[a,b,c]", "dataset.mean=[1,2]", "dataset.mean={a:1}"),
    *(
        "dataset.std=0",
        "dataset.std=[0,0,0]",
        "dataset.std=[null,1,1]",
        "dataset.std=[nan,1,1]",
        "dataset.std=[-1,1,1]",
    ),
    *("dataset.name=mnist", "dataset.name=null", "dataset.name=[a]", "dataset.name=../x"),
    *("recipe.rho=x", "recipe.rho=-1", "recipe.rho=null", "recipe.rho=[1]", "recipe.rho=inf"),
    *("scheme.name=sma", "scheme.name=null", "scheme.name=[sam]", "scheme.name=1"),
    *("variant.name=sma", "variant.name=null", "variant.name=[sam]", "variant.name={}"),
    *("schedule.p=nan", "schedule.p=null", "schedule.p={}", "schedule.p=true", "schedule.p=''", "schedule.p=1e999"),
    *("model=resnet18 model.blocks=2", "model=resnet18 model.blocks=[]", "model=resnet18 model.blocks=[2,x,2,2]"),
    *("model=resnet18 model.widths=[64]", "model=resnet18 model.widths=null", "model=resnet18 model.blocks=[0,0,0,0]"),
    *("model=resnet18 model.widths=[-1,1,1,1]", "model=resnet18 model.blocks=[2.5,2,2,2]"),
    *("model.num_classes=x", "model.num_classes=0", "model.in_channels=null", "model.in_channels=7"),
    *("model.depth=11", "model=vit_ti model.heads=5", "model=vit_ti model.patch_size=3"),
    *("model._target_=os.system", "model._target_=nowhere", "model._target_=null", "model._target_=3"),
    *("optimizer._target_=nowhere", "optimizer._target_=builtins.print", "schedule._target_=nowhere"),
    *("schedule._target_=builtins.print", "optimizer=adamw optimizer.betas=2", "optimizer=adamw optimizer.betas=[2,2]"),
    *(
        "optimizer=adamw optimizer.betas=[a,b]",
        "optimizer=adamw optimizer.betas=null",
        "optimizer=adamw optimizer.eps=-1",
    ),
    *("optimizer=adamw optimizer.eps=x", "variant=esam variant.beta=2", "variant=esam variant.gamma=x"),
    *(
        "variant=gsam variant.alpha=x",
        "variant=looksam variant.k=0",
        "variant=looksam variant.k=x",
        "variant=asam variant.eta=x",
    ),
    *("variant=ssam_f variant.sparsity=2", "variant=ssam_d variant.sparsity=x"),
    *("schedule=periodic schedule.k=x", "schedule=periodic schedule.k=true", "schedule=linear schedule.m=2"),
    *(
        "schedule=piecewise schedule.a=x",
        "schedule=tail schedule.fraction=-1",
        "schedule=linear_through schedule.b=[1]",
    ),
    *("network=3", "network=null", "datasets=3", "datasets=cifar10", "datasets=[mnist]", "scale=[smoke]"),
    *("paths=null", "paths=3", "recipe=null", "recipe=3", "dataset=null", "model=null", "model=3"),
    *("wandb=null", "wandb=[1]", "variant=null", "scheme=null", "augmentation=null"),
    *("model.num_classes=3", "dataset.channels=99", "dataset.validation=64"),
    *(
        "augmentation.crop_padding=8",
        "augmentation.cutout=40",
        "device=cuda:99",
        "device=meta",
        "device=''",
    ),
    *("recipe.batch_size=99999", "dataset.num_classes=5"),
    *("dataset.train_images=1001", "dataset.test_images=798"),
]
"""Wrong where the rules are silent, and pairs at odds, of a small run on the digits."""

CONTRADICTIONS = [
    *(
        "scheme=sam schedule=constant",
        "scheme=sgd schedule=sine",
        "scheme=gnr schedule=tail",
        "scheme=sam schedule.p=0.5",
    ),
    *("scheme=sam scheme.gamma_ratio=2", "scheme=rst scheme.gamma_ratio=auto", "scheme=gnr scheme.gamma_ratio=auto"),
    *("scheme=grst schedule=never", "scheme=grst schedule.p=0", "scheme=sgd schedule=always"),
    *(
        "recipe.batch_size=60000",
        "dataset.validation=49900",
        "dataset.validation=50000",
        "recipe.perturbation_batch=60",
    ),
    *(
        "recipe.perturbation_batch=512",
        "recipe.warmup_epochs=201",
        "model=vit_s recipe.epochs=30",
        "dataset.channels=2",
    ),
    *("scale=cpu dataset=imagenet model=resnet50", "scale=cpu dataset=digits", "dataset=digits model=vgg16_bn"),
    *(
        "dataset=digits model=resnet50",
        "dataset=digits dataset.source=parquet",
        "dataset=digits dataset.source=torchvision",
    ),
    *("dataset=cifar10 dataset.image_size=16", "dataset=cifar10 dataset.channels=1 dataset.mean=[0] dataset.std=[1]"),
    *("dataset=digits model.depth=17", "dataset=digits optimizer.momentum=0", "dataset=imagenet dataset.num_classes=3"),
]


def of_other_values(draw: random.Random) -> Iterator[Wrong]:
    for command in OTHER_VALUES:
        own = command.split()
        groups = {text.split("=")[0] for text in own}
        base = [text for text in TINY if text.split("=")[0] not in groups]
        # The network and the optimizer are built by training alone, and the others are cheaper.
        yield Wrong(TRAIN if re.search("model|optimizer|network", command) else SHOW, [*base, *own])
    for command in CONTRADICTIONS:
        yield Wrong(draw.choice([TRAIN, SHOW]) if "digits" in command else SHOW, command.split())


GROUPS = ["augmentation", "dataset", "model", "optimizer", "recipe", "scale", "schedule", "scheme", "variant"]
CHOICES = [
    "huge",
    "",
    "'../x'",
    "RESNET18",
    "cifar10.yaml",
    "'a b'",
    "ünï",
    "/etc/passwd",
    "'a/b'",
    "x" * 5000,
    '"a\\nb"',
    "_",
]


def of_unknown_choices(draw: random.Random) -> Iterator[Wrong]:
    for group in GROUPS:
        for choice in draw.sample(CHOICES, 3):
            script, names = draw.choice([(TRAIN, []), (SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"])])
            yield Wrong(script, [*names, f"{group}={choice}"])


GRAMMAR = [
    *(
        "a==b",
        "=",
        "=1",
        "seed",
        "seed=[1",
        "seed=1]",
        "seed={a:1",
        "seed={a}",
        "seed=(1",
        "seed='1",
        'seed="1',
        "seed=a b c=",
    ),
    *(
        "+seed=1",
        "+seed",
        "++",
        "~",
        "~dataset",
        "~seed=7",
        "~nothing",
        "~dataset.name",
        "~recipe.epochs",
        "~model",
        "~paths.runs",
    ),
    *(
        "-",
        " ",
        "seed=1 2",
        "seed=\x00",
        "seed=\x1b[31m",
        "seed=\r",
        "seed=1\n2",
        "seed\n=1",
        "\u2028=1",
        "seed=\u2028",
        "ключ=1",
    ),
    *(
        "seed=1,2",
        "seed=range(3)",
        "seed=choice(1,2)",
        "seed=glob(*)",
        "seed=sort(3,1)",
        "seed=interval(0,1)",
        "seed=int(x)",
    ),
    *(
        "hydra.run.dir=",
        "hydra/launcher=nothing",
        "hydra.nothing=1",
        "recipe..epochs=1",
        ".epochs=1",
        "recipe.=1",
        "recipe.epochs.x=1",
    ),
    *(
        "recipe@other=vit",
        "model@=resnet18",
        "seed=${",
        "seed=${seed}",
        "seed=${a:b",
        "a" * 20000,
        "a" * 5000 + "=1",
        "seed=" + "[" * 200,
    ),
    *(
        "recipe.epochs==1",
        "recipe.epochs=1=2",
        "recipe epochs=1",
        "recipe.epochs =1",
        "recipe.epochs=[1,",
        "recipe.epochs=(1)",
    ),
    *(
        "🙂=1",
        "seed=🙂",
        "\udcff=1",
        "seed=\udcff",
        "a.b=\udcff",
        "recipe.epochs=\u2028",
        "recipe.epochs=\x00",
        "recipe.epochs=1,2",
    ),
]


def of_broken_grammar(draw: random.Random) -> Iterator[Wrong]:
    for text in GRAMMAR:
        yield Wrong(TRAIN, [text])
        if "=" in text and not text.startswith("-"):
            script, names = draw.choice([(SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"]), (IMPORT, ["nowhere"])])
            yield Wrong(script, [*names, text])
    letters = string.ascii_lowercase + string.digits + "=.+~@:,[](){}'\"$ \\/*\t\nß–"
    for _ in range(40):
        text = "".join(draw.choices(letters, k=draw.randrange(1, 12)))
        yield Wrong(TRAIN, ["seed=-1" if text[0] == "-" else text])


# ------------------------------------------------------------------------------------------- wrong options and names

COMMANDS = {
    TRAIN: [
        ["--nothing"],
        ["-x"],
        ["--cfg"],
        ["--cfg", "nothing"],
        ["--config-name", "nothing"],
        ["--config-dir", "/nowhere"],
    ],
    SWEEP: [
        *(
            [],
            ["--dry-run"],
            ["two", "--workers"],
            ["two", "--workers", "0"],
            ["two", "--workers", "-3"],
            ["two", "--nothing"],
        ),
        *(
            ["two", "--workers", "x"],
            ["two", "--workers", "1.5"],
            ["two", "--workers", ""],
            ["two", "--workers", "9" * 30, "scale=x"],
        ),
        *(
            ["scale=smoke"],
            ["scale=huge", "two"],
            ["nothing"],
            ["two", "nothing"],
            [""],
            [" "],
            ["../tables/two"],
            ["two.yaml"],
        ),
        *(
            ["/etc/passwd"],
            ["two\n"],
            ["tw\x00o"],
            ["ünï"],
            ["\udcff"],
            ["x" * 5000],
            ["two", "two", "nothing"],
            ["TWO"],
            ["."],
            ["*"],
        ),
        *(
            ["tables"],
            ["figures"],
            ["two", "--dry-run", "--dry-run=1"],
            ["two", "--launcher", "nothing"],
            ["two", "-n", "2"],
        ),
    ],
    REPORT: [
        *(
            [],
            ["scale=smoke"],
            ["nothing"],
            ["two", "nothing"],
            [""],
            [" "],
            ["../tables/two"],
            ["two.yaml"],
            ["--nothing"],
        ),
        *(
            ["two", "--page=3"],
            ["two\n"],
            ["tw\x00o"],
            ["\udcff"],
            ["x" * 5000],
            ["two", "scale=huge"],
            ["--page"],
            ["tables"],
            ["."],
        ),
        *(["two", "paths.runs=notes.txt"], ["two", "paths.runs=notes.txt/runs"]),
    ],
    PREPARE: [
        *(
            [],
            ["nothing"],
            ["cifar10", "cifar100"],
            [""],
            [" "],
            ["../digits"],
            ["cifar10.yaml"],
            ["a=b"],
            ["\n"],
            ["\x00"],
            ["\udcff"],
        ),
        *(
            ["digits", "--root"],
            ["cifar10", "--root", "nowhere"],
            ["cifar10", "--root", "notes.txt"],
            ["cifar10", "--root", "a=b"],
        ),
        *(
            ["cifar10", "--root", "\n"],
            ["cifar10", "--root", "\x00"],
            ["cifar10", "--root", "[1"],
            ["imagenet", "--root", "nowhere"],
        ),
        *(
            ["imagenet", "--root", "data"],
            ["imagenet", "--root", "notes.txt"],
            ["--nothing"],
            ["x" * 5000],
            ["digits", "-x"],
        ),
        *(
            ["cifar10", "--root", "a,b"],
            ["cifar10", "--root", "${x"],
            ["cifar10", "--root", "null"],
            ["cifar10", "--root", "x" * 5000],
        ),
    ],
    SHOW: [
        *(
            ["--epoch"],
            ["--epoch", "x"],
            ["--epoch", "1.5"],
            ["--output"],
            ["--nothing"],
            ["two"],
            [""],
            [" "],
            ["\x00"],
        ),
        *(
            [*TINY, "--epoch", "-1"],
            [*TINY, "--output", "nowhere/a.png"],
            [*TINY, "--output", "results"],
            [*TINY, "--output", ""],
        ),
        *(
            [*TINY, "--output", "a.nothing"],
            [*TINY, "--output", "notes.txt/a.png"],
            [*TINY, "--output", "x" * 300 + ".png"],
        ),
        *([*TINY, "--output", "a\x00.png"], [*TINY, "--nothing"]),
    ],
    IMPORT: [
        *(
            [],
            ["nowhere"],
            ["notes.txt"],
            ["data"],
            [""],
            [" "],
            ["a/b/c"],
            ["\x00"],
            ["\n"],
            ["x" * 5000],
            ["nowhere", "--group"],
        ),
        *(
            ["data", "seed=x"],
            ["data", "model=nothing"],
            ["data", "--nothing"],
            ["data", "more"],
            ["data", "paths.runs="],
        ),
        *(["data", "--group", "nothing"], ["\udcff"], ["data/cache/cifar100.pt"]),
    ],
}


def of_options(draw: random.Random) -> Iterator[Wrong]:
    return (Wrong(script, arguments) for script, commands in COMMANDS.items() for arguments in commands)


FAMILIES: dict[str, Callable[[random.Random], Iterator[Wrong]]] = {
    "key": of_every_key,
    "misspelt": of_misspelt_keys,
    "value": of_other_values,
    "choice": of_unknown_choices,
    "grammar": of_broken_grammar,
    "option": of_options,
}
WRONG = {name: list(family(random.Random(name))) for name, family in FAMILIES.items()}


# ----------------------------------------------------------------------------------------------------- wrong tables

RIGHT_TABLE = {
    "title": "a title",
    "draw": "table",
    "seeds": 1,
    "overrides": TINY,
    "blocks": {"one": [], "two": ["model=wrn10_1"]},
    "columns": {"digits": ["dataset=digits"]},
    "metrics": ["test_error"],
    "rows": {"SGD": ["scheme=sgd"], "RST[<p>]": {"overrides": ["scheme=rst", "schedule.p=<p>"], "grid": {"p": [0.5]}}},
    "groups": {"more": {"overrides": [], "rows": {"SAM": {"overrides": ["scheme=sam"], "ours": True, "paper": {}}}}},
}
WRONG_VALUES_OF = {
    "title": [None, [1], {"a": 1}],
    "draw": [None, ["table"], "", "picture", {"a": 1}, 3, "__init__", "write"],
    "seeds": [None, -1, 1.5, "two", [1], {"a": 1}],
    "overrides": [None, "scheme=sgd", {"a": 1}, [None], [["a=1"]], ["a"], [1], [{"scheme": "sgd"}], ["recipe.epoch=1"]],
    "blocks": ["one", 3, ["one"], {"one": None}, {"one": "model=wrn10_1"}, {"one": {"a": 1}}, {"one": ["model=none"]}],
    "columns": ["one", 3, ["one"], {"one": None}, {"one": "a=1"}, {"one": {"a": 1}}, {"one": ["dataset=none"]}],
    "metrics": [None, "test_error", ["nothing"], [None], {"a": 1}, [["test_error"]], 3],
    "paper": [["table01"], {"a": 1}, "nothing", "../paper/table01x"],
    "like": [None, "two", ["nothing"], ["wrong"], [None], {"two": 1}, 3],
    "rows": [
        None,
        "SGD",
        3,
        ["scheme=sgd"],
        {"SGD": None},
        {"SGD": 3},
        {"SGD": "scheme=sgd"},
        {"SGD": ["scheme=none"]},
    ],
    "groups": [
        "more",
        3,
        ["rows"],
        {"a": None},
        {"a": 3},
        {"a": {"rows": None}},
        {"a": {"rows": ["x"]}},
        {"a": {"title": "x"}},
    ],
    "unknown": [1],
    "row": [{}],
}
WRONG_ROWS: list[Any] = [
    *(
        {"overrides": "scheme=sgd"},
        {"override": []},
        {"grid": {"p": 0.5}},
        {"grid": {"p": None}},
        {"grid": [1]},
        {"grid": {"p": {}}},
    ),
    *(
        {"ours": "perhaps"},
        {"ours": [1]},
        {"paper": "RST"},
        {"paper": {"scheme": ["a"]}},
        {"overrides": ["schedule.p=<q>"]},
    ),
    *(
        {"overrides": ["schedule.p=<p>"], "grid": {"p": [2]}},
        {"overrides": ["schedule.p=<p>"], "grid": {"p": ["x"]}},
        [[]],
        [{}],
    ),
    *(
        {"overrides": ["a=1"]},
        {"overrides": ["~seed"]},
        {"overrides": ["seed=["]},
        {"overrides": ["paths.runs="]},
        ["seed=1,2"],
    ),
]
WRONG_TEXTS: list[str | bytes] = [
    *(
        "",
        " \n",
        "#",
        "---",
        "null",
        "3",
        "text",
        "[]",
        "{}",
        "- a",
        "title: x",
        "title: x\nrows: {}",
        "title: x\nrows:\n",
        "rows: {SGD: []}",
    ),
    *(
        "\ttitle: x",
        "title:\tx\n\trows: {}",
        "title: [",
        "title: x}",
        "title: 'x",
        'title: "x',
        "title: x\ntitle: y\nrows: {SGD: []}",
    ),
    *(
        "title: x\nrows: {SGD: [], SGD: []}",
        "title: &a [*a]",
        "&a\ntitle: x\nrows: *a",
        "title: x\nrows: &r\n  SGD: *r",
        "title: *b",
    ),
    *(
        "title: x\nrows: {1: []}\nseeds: 1\nrow s: 2",
        "title: x\n rows: {}",
        "title: x\n---\ntitle: y",
        "? [a, b]\n: 1",
        "{a: 1}: 2",
    ),
    *(
        "title: !!python/object/apply:os.system [touch canary]",
        "!!python/name:os.system",
        "title: !nothing x",
        "title: x: y",
        "%YAML 9.9\n---\na",
    ),
    *(
        "title: x\nrows:\n  SGD: &s\n    overrides: [*s]",
        "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\ntitle: *c",
        "title: ${nowhere}\nrows: {SGD: []}",
    ),
    *(
        "title: ???\nrows: {SGD: []}",
        "title: x\nrows: {SGD: ['scheme=${oc.env:NOT_SET}']}",
        "title: x\nrows: {? : []}",
        "title: x\nrows: {[1]: []}",
        "title: x\nrows: {null: 1}",
    ),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\x80title: x",
        b"PK\x03\x04" + bytes(range(256)),
        "title: x\x07",
        "\ufefftitle",
        "title: x\nrows: {SGD: [\udcff".encode("utf-8", "surrogateescape"),
    ),
    *("[" * 3000, "a: " * 500, "{" * 2000, "title: x\nrows: " + "{a: " * 200),
]


def wrong_tables() -> list[bytes]:
    """Files that are wrong in one thing each."""
    files: list[Any] = [RIGHT_TABLE | {key: value} for key, values in WRONG_VALUES_OF.items() for value in values]
    files += [
        {key: value for key, value in RIGHT_TABLE.items() if key not in gone}
        for gone in (["title"], ["rows", "groups"])
    ]
    files += [RIGHT_TABLE | {"rows": {"SGD": ["scheme=sgd"], "RST": row}} for row in WRONG_ROWS]
    texts = [json.dumps(file).encode() for file in files]  # JSON is YAML
    return texts + [text if isinstance(text, bytes) else text.encode() for text in WRONG_TEXTS]


TABLES = wrong_tables()


# ----------------------------------------------------------------------------------- wrong records, data, checkpoints


class Evil:
    """An object whose pickle makes a file where it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def evil_pickles() -> dict[str, bytes]:
    """Files that run code where they are unpickled without care."""
    files = {f"protocol {protocol}": pickle.dumps(Evil(), protocol) for protocol in range(0, 6, 2)}
    for name, content in {"all": Evil(), "part": {"id": "x", "config": "", "model": {}, "random": Evil()}}.items():
        for form in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=form)
            files[f"torch {name} {form}"] = buffer.getvalue()
    return files


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def damage(file: Path, kind: str) -> None:
    """Damage a file, or put something else in its place."""
    content = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "unreadable":
        file.symlink_to("/proc/self/mem")  # opens, but is not read: not even root can
    else:
        texts = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello: [", "null": b"null\n"}
        texts |= {"number": b"3\n", "list": b"[1, 2]\n", "mapping": b'{"a": {}}\n', "nul": bytes(64)}
        file.write_bytes((texts | {"garbage": random.Random(0).randbytes(999)})[kind])


DAMAGES = ["empty", "truncated", "text", "null", "number", "list", "mapping", "nul", "garbage", "folder", "unreadable"]
AGAIN = (TRAIN, [*TINY, "scheme=grst", "schedule.p=0.7"])
SAID = "digits-wrn10_1-constant-p0.7-*"
"""The folder of the run of AGAIN."""

# A file of a record; whether the run is done; a command that cannot do without the file.
NEEDED = [
    ("summary.json", True, AGAIN),
    ("summary.json", True, (REPORT, ["two"])),
    ("summary.json", True, (SWEEP, ["two"])),
    ("config.yaml", True, (REPORT, ["two"])),
    ("environment.json", True, (REPORT, ["two", "--page"])),
    ("checkpoint.pt", False, AGAIN),
    ("checkpoint.pt", True, (TRAIN, ["evaluate=RUN", "device=cpu"])),
]
# As above, of what a command may do without, but not end in a traceback.
DISPENSABLE = [
    ("config.yaml", False, (SWEEP, ["two", "--dry-run"])),
    ("environment.json", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, (SWEEP, ["two", "--dry-run"])),
    ("metrics.jsonl", False, AGAIN),
    ("environment.json", False, AGAIN),
    ("config.yaml", False, AGAIN),
]


def damaged_records(
    project: Path, name: str, done: bool, command: tuple[str, list[str]]
) -> Iterator[tuple[str, Wrong]]:
    """A file of a record damaged in each way; what was done, and the command."""
    pristine = project.parent / "pristine"
    shutil.copytree(project / "results", pristine)
    script, arguments = command
    for kind in damages(command):
        shutil.rmtree(project / "results")
        shutil.copytree(pristine, project / "results")
        runs = project / "results" / "runs"
        [own] = runs.glob(SAID)
        if not done:
            (own / "summary.json").unlink()
        # What a dry run takes from records, it takes from all.
        for folder in runs.iterdir() if "--dry-run" in arguments else [own]:
            damage(folder / name, kind)
        yield f"{name}: {kind}", Wrong(script, [text.replace("RUN", own.name) for text in arguments])


def damages(command: tuple[str, list[str]]) -> list[str]:
    """Some of them where a command takes its time."""
    return DAMAGES if command in ((REPORT, ["two"]), (SWEEP, ["two", "--dry-run"])) else DAMAGES[1::2]


def wrong_states(state: dict[str, Any]) -> dict[str, bytes]:
    """Checkpoints that load, but are not those of the run."""
    config = OmegaConf.create(state["config"])
    touch = {"_target_": "shutil.copyfile", "src": "notes.txt", "dst": "canary"}
    configs = {
        "empty": "",
        "no YAML": "a: [",
        "list": "- a",
        "number": "3",
        "partial": "model: {}",
        "other": OmegaConf.to_yaml({"a": 1}),
    }
    configs["cyclic"] = "&a\nb: *a"
    own = touch | {"_target_": "rst.models.common.nn.modules.module.torch.hub.shutil.copyfile"}
    configs["code for the model"] = OmegaConf.to_yaml(OmegaConf.create({**config, "model": touch}))
    configs["code behind our own"] = OmegaConf.to_yaml(OmegaConf.create({**config, "model": own}))
    hidden = {
        "code in the model": {"model": {"depth": touch}},
        "code in a list of the model": {"model": {"more": [touch]}},
        "code in a list of lists": {"model": {"more": [[touch]]}},
        "code that the model refers to": {"model": {"depth": "${evaluate}"}, "evaluate": touch},
        "code that a list of the model refers to": {"model": {"more": ["${evaluate}"]}, "evaluate": touch},
        "code in the schedule": {"schedule": {"p": touch}},
    }
    for name, node in hidden.items():
        configs[name] = OmegaConf.to_yaml(OmegaConf.merge(config, node))
    weights = state["model"]
    models = {"empty": {}, "list": [1], "number": 3, "text": "x", "one": dict(list(weights.items())[:1])}
    models |= {"shapes": {key: value[None] for key, value in weights.items()}, "types": dict.fromkeys(weights, 3)}
    states = {f"config {name}": {**state, "config": text} for name, text in configs.items()}
    states |= {
        f"config of type {type(value).__name__}": {**state, "config": value} for value in (None, 3, [1], {"a": 1})
    }
    states |= {f"model {name}": {**state, "model": model} for name, model in models.items()}
    states |= {"list": [1], "tensor": torch.zeros(3), "empty": {}, "few": {key: state[key] for key in ("id", "config")}}
    return {name: saved(content) for name, content in states.items()}


def wrong_resumes(state: dict[str, Any]) -> dict[str, bytes]:
    """Checkpoints whose networks are right, but that a run cannot go on from."""
    states: dict[str, Any] = {f"without {key}": {k: v for k, v in state.items() if k != key} for key in state}
    del states["without config"], states["without model"], states["without id"]
    states |= {f"{key} a text": {**state, key: "x"} for key in state if key not in ("config", "scaler")}
    states |= {f"{key} null": {**state, key: None} for key in ("step", "optimizer", "ranks", "model")}
    states |= {"another run": {**state, "id": "another"}, "code": {**state, "id": "../../../notes.txt"}}
    return {name: saved(content) for name, content in states.items()}


def write_parquet(file: Path, table: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), file)


def wrong_data(folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders in which CIFAR-10 is damaged or wrong."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    image = {"bytes": picture.getvalue(), "path": None}
    columns: dict[str, dict[str, Any]] = {
        "right": {"img": [image, image], "label": [0, 1]},
        "no image": {"img": [{"bytes": b"nonsense", "path": None}], "label": [0]},
        "null image": {"img": [image, None], "label": [0, 1]},
        "null bytes": {"img": [{"bytes": None, "path": "x"}], "label": [0]},
        "image of another size": {"img": [{"bytes": small.getvalue(), "path": None}], "label": [0]},
        "images as texts": {"img": ["a", "b"], "label": [0, 1]},
        "labels as texts": {"img": [image], "label": ["cat"]},
        "label out of range": {"img": [image], "label": [10]},
        "label below zero": {"img": [image], "label": [-1]},
        "label null": {"img": [image], "label": [None]},
        "label a fraction": {"img": [image], "label": [[0.5]]},
        "no rows": {"img": pa.array([], pa.struct([("bytes", pa.binary())])), "label": pa.array([], pa.int64())},
    }
    for name, table in columns.items():
        for split in ("train", "test"):
            write_parquet(folder / name / f"{split}-00000-of-00001.parquet", table)
        yield name, folder / name
    for kind in DAMAGES:
        shutil.copytree(folder / "right", folder / kind)
        damage(folder / kind / "train-00000-of-00001.parquet", kind)
        yield f"train {kind}", folder / kind
    shutil.copytree(folder / "right", folder / "no test")
    (folder / "no test" / "test-00000-of-00001.parquet").unlink()
    yield "no test", folder / "no test"
    write_parquet(folder / "gap" / "train-00001-of-00002.parquet", columns["right"])
    yield "gap", folder / "gap"
    write_parquet(folder / "columns" / "train-00000-of-00001.parquet", {"image": [1], "label": [0]})
    yield "no column img", folder / "columns"
    for name, content in (evil_pickles() | {"garbage batch": b"\x80garbage", "empty batch": b""}).items():
        batches = folder / name / "cifar-10-batches-py"
        batches.mkdir(parents=True)
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (batches / file).write_bytes(content)
        yield name, folder / name


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("family", WRONG)
def test_wrong_command_lines_are_refused_in_one_sentence_and_change_nothing(family: str, project: Path) -> None:
    defects = answer_all(WRONG[family], project)
    assert defects == [], "\n".join(defects)


def test_wrong_table_files_are_refused_in_one_sentence_and_change_nothing(project: Path) -> None:
    defects = []
    file = project / "configs" / "tables" / "wrong.yaml"
    for text in TABLES:
        file.write_bytes(text)
        found = answer_all([Wrong(REPORT, ["wrong"])], project)
        defects += [f"{text[:200]!r}: {defect}" for defect in found]
    assert not (project / "canary").exists()
    assert defects == [], "\n".join(defects)


@pytest.mark.parametrize(("file", "done", "command"), NEEDED)
def test_a_damaged_record_is_named_in_one_sentence_and_left_as_it_is(
    file: str, done: bool, command: tuple[str, list[str]], project: Path
) -> None:
    defects = []
    for what, wrong in damaged_records(project, file, done, command):
        defects += [f"{what}: {found}" for found in answer_all([wrong], project)]
    assert defects == [], "\n".join(defects)


@pytest.mark.parametrize(("file", "done", "command"), DISPENSABLE)
def test_a_damaged_file_that_a_command_can_do_without_is_no_traceback(
    file: str, done: bool, command: tuple[str, list[str]], project: Path
) -> None:
    defects = []
    for what, wrong in damaged_records(project, file, done, command):
        answer = run(wrong.script, wrong.arguments)
        found = defect(wrong.script, answer) if answer.code else ""
        defects += [f"{what}: {wrong} {found}"] if found else []
    assert defects == [], "\n".join(defects)


def test_a_wrong_checkpoint_is_refused_in_one_sentence_and_no_code_of_it_runs(project: Path) -> None:
    [folder] = (project / "results" / "runs").glob(SAID)
    file = folder / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    evil, wrong, cannot_go_on = evil_pickles(), wrong_states(state), wrong_resumes(state)
    defects = []
    for name, content in (evil | wrong).items():
        file.write_bytes(content)
        found = answer_all([Wrong(TRAIN, [f"evaluate={folder.name}", "device=cpu"])], project)
        defects += [f"evaluate, {name}: {text}" for text in found]
        (project / "canary").unlink(missing_ok=True)
    cannot_go_on |= {name: content for name, content in wrong.items() if not name.startswith("config")}
    for name in [*evil, *random.Random(0).sample(sorted(cannot_go_on), 10)]:
        content = (evil | cannot_go_on)[name]
        (folder / "summary.json").unlink(missing_ok=True)
        file.write_bytes(content)
        defects += [f"resume, {name}: {text}" for text in answer_all([Wrong(*AGAIN)], project)]
        (project / "canary").unlink(missing_ok=True)
    assert defects == [], "\n".join(defects)


def test_wrong_data_is_refused_in_one_sentence_and_no_code_of_it_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPECS, "cifar10", replace(SPECS["cifar10"], train_images=2, test_images=2))  # so digests count
    defects = []
    for name, root in wrong_data(tmp_path / "data"):
        commands = [
            Wrong(PREPARE, ["cifar10", "--root", str(root)]),
            Wrong(
                SHOW,
                [
                    "dataset=cifar10",
                    "recipe.batch_size=2",
                    f"dataset.root='{root}'",
                    "dataset.train_images=2",
                    "dataset.test_images=2",
                    "recipe.perturbation_batch=1",
                ],
            ),
        ]
        defects += [f"{name}: {found}" for found in answer_all(commands, project)]
    assert defects == [], "\n".join(defects)


def test_a_wrong_cache_is_named_runs_no_code_and_stays_where_there_is_nothing_in_its_place(project: Path) -> None:
    file = project / "data" / "cache" / "cifar10.pt"
    contents_of_cache = evil_pickles() | {
        "garbage": b"garbage",
        "empty": b"",
        "other": saved([1]),
        "splits": saved({"train": (1, 2), "test": 3}),
    }
    for content in contents_of_cache.values():
        file.write_bytes(content)
        before = contents(project)
        answer = run(PREPARE, ["cifar10"])
        warning, sentence = answer.err.splitlines()
        assert answer.code == 1
        assert f"{file.relative_to(project)} is damaged" in warning
        assert sentence.startswith("prepare_data.py: No cifar10 images")
        assert contents(project) == before


def test_a_wrong_name_is_found_before_any_table_is_written(project: Path) -> None:
    shutil.rmtree(project / "results" / "tables")
    assert answer_all([Wrong(REPORT, ["two", "nothing"])], project) == []


def test_at_least_300_wrong_inputs_are_tried() -> None:
    commands = sum(map(len, WRONG.values()))
    records = sum(len(damages(command)) for _, _, command in [*NEEDED, *DISPENSABLE])
    print(f"\n{commands} wrong command lines, {len(TABLES)} wrong table files and {records} damaged records are tried.")
    assert len({str(wrong) for family in WRONG.values() for wrong in family}) >= 300
    assert len(set(TABLES)) >= 100
