"""Wrong command lines by the hundred, in families: each is wrong in one way, or in a few."""

import random
import re
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import BaseModel, TypeAdapter, ValidationError

from rst.experiments.compose import CONFIGS
from rst.experiments.spec import RunSpec

from .answers import BENCH, IMPORT, PLOT, PREPARE, REPORT, RUNS, SHOW, SWEEP, TINY, TRAIN, Wrong


def separated(text: str) -> list[str]:
    """The words of a text, which two spaces or a new line separate from each other."""
    return re.split(r" {2,}|\n", text.strip())


# --------------------------------------------------------------------------------------------- wrong values of each key


def types_of(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, TypeAdapter[Any]]]:
    """The dotted name of every declared key, and the type that its value must have."""
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from types_of(field.annotation, f"{prefix}{name}.")
        else:
            kind: Any = field.annotation
            for constraint in field.metadata:
                kind = Annotated[kind, constraint]
            yield f"{prefix}{name}", TypeAdapter(kind)


TYPES = dict(types_of(RunSpec))

VALUES = separated("-1  0  -0.5  1.5  2.5  1e999  nan  -inf  true  null  two  ''  ' '  [1,2]  []  {a:1}  {}  ünï")
VALUES += [*separated("'1'  1_0  0x10  99999999999999999999  1e-400  /  $HOME  ٣"), r'"a\nb"', "x" * 5000]
BROKEN = separated("${nowhere}  ${seed  ???  ${oc.env:NOT_SET}  ${steps:x}  ${ratio:1,0}")
"""Values that are wrong for every key."""


def wrong_values(key: str, count: int, draw: random.Random) -> list[str]:
    """Some values that do not have the type of the key, and one that no key may have."""
    parser = OverridesParser.create()

    def fits(text: str) -> bool:
        try:
            TYPES[key].validate_python(parser.parse_override(f"{key}={text}").value())
        except (HydraException, ValidationError):
            return False
        return True

    refused = [text for text in VALUES if not fits(text)]
    return [*draw.sample(refused, min(count, len(refused))), draw.choice(BROKEN)]


def network_with(key: str) -> list[str]:
    """The override that chooses a network with this key."""
    group, _, name = key.partition(".")
    files = sorted((CONFIGS / "model").glob("*.yaml"))
    return [f"model={file.stem}" for file in files if group == "model" and name in OmegaConf.load(file)][:1]


def of_every_key(draw: random.Random) -> Iterator[Wrong]:
    """Wrong values of every key."""
    for key in TYPES:
        costly = "." not in key  # Hydra composes anew for every value of a key without a group.
        for value in wrong_values(key, 1 if costly else 3, draw):
            script, names = draw.choice([(TRAIN, []) if costly else (SHOW, []), (SHOW, []), (IMPORT, ["nowhere"])])
            yield Wrong(script, [*names, *network_with(key), f"{key}={value}"])


def of_misspelt_keys(draw: random.Random) -> Iterator[Wrong]:
    """Keys with a letter too few, too many or wrong, in capitals, or with something behind them."""
    for key in draw.sample(sorted(TYPES), 24):
        at = draw.randrange(1, len(key))
        edits = [key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "q" + key[at:], key.upper()]
        edits += [key + ".more", key + "s"]
        misspelt = draw.choice([edit for edit in edits if edit not in TYPES])
        script, names = draw.choice([(SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"]), (IMPORT, ["nowhere"])])
        yield Wrong(script, [*names, f"{misspelt}=1"])


# ------------------------------------------------------------------------------ values that are wrong for other reasons

OTHER_VALUES = separated("""
dataset.mean=3  dataset.mean=null  dataset.mean=[a,b,c]  dataset.mean=[1,2]  dataset.mean={a:1}
dataset.std=0  dataset.std=[0,0,0]  dataset.std=[null,1,1]  dataset.std=[nan,1,1]  dataset.std=[-1,1,1]
dataset.name=mnist  dataset.name=null  dataset.name=[a]  dataset.name=../x
recipe.rho=x  recipe.rho=-1  recipe.rho=null  recipe.rho=[1]  recipe.rho=inf
scheme.name=sma  scheme.name=null  scheme.name=[sam]  scheme.name=1
variant.name=sma  variant.name=null  variant.name=[sam]  variant.name={}
schedule.p=nan  schedule.p=null  schedule.p={}  schedule.p=true  schedule.p=''  schedule.p=1e999
model=resnet18 model.blocks=2  model=resnet18 model.blocks=[]  model=resnet18 model.blocks=[2,x,2,2]
model=resnet18 model.widths=[64]  model=resnet18 model.widths=null  model=resnet18 model.blocks=[0,0,0,0]
model=resnet18 model.widths=[-1,1,1,1]  model=resnet18 model.blocks=[2.5,2,2,2]
model.num_classes=x  model.num_classes=0  model.in_channels=null  model.in_channels=7
model.depth=11  model=vit_ti model.heads=5  model=vit_ti model.patch_size=3
model._target_=os.system  model._target_=nowhere  model._target_=null  model._target_=3
optimizer._target_=nowhere  optimizer._target_=builtins.print  schedule._target_=nowhere
schedule._target_=builtins.print  optimizer=adamw optimizer.betas=2  optimizer=adamw optimizer.betas=[2,2]
optimizer=adamw optimizer.betas=[a,b]  optimizer=adamw optimizer.betas=null  optimizer=adamw optimizer.eps=-1
optimizer=adamw optimizer.eps=x  variant=esam variant.beta=2  variant=esam variant.gamma=x
variant=gsam variant.alpha=x  variant=looksam variant.k=0  variant=looksam variant.k=x  variant=asam variant.eta=x
variant=friendly variant.sigma=-1  variant=friendly variant.decay=2
variant=ssam_f variant.sparsity=2  variant=ssam_d variant.sparsity=x
schedule=periodic schedule.k=x  schedule=periodic schedule.k=true  schedule=linear schedule.m=2
schedule=piecewise schedule.a=x  schedule=tail schedule.fraction=-1  schedule=linear_through schedule.b=[1]
network=3  network=null  datasets=3  datasets=cifar10  datasets=[mnist]  scale=[smoke]
paths=null  paths=3  recipe=null  recipe=3  dataset=null  model=null  model=3
wandb=null  wandb=[1]  variant=null  scheme=null  augmentation=null
model.num_classes=3  dataset.channels=99  dataset.validation=64
augmentation.crop_padding=8  augmentation.cutout=40  device=cuda:99  device=meta  device=''
recipe.batch_size=99999  dataset.num_classes=5  dataset.train_images=1001  dataset.test_images=798
network=resnet18  network=nothing  network=../model/wrn10_1  network=/etc/passwd
optimizer.name=nothing  optimizer.name=../optimizer/sgd  optimizer.name=adamw
schedule.name=nothing  schedule.name=Schedule  schedule.name=__all__  schedule.name=sine
dataset=folder  dataset=folder dataset.root=nowhere  dataset=folder dataset.root=notes.txt
dataset=folder dataset.root=results/runs  dataset=folder dataset.root=configs  dataset=folder dataset.root=pets/cat
dataset.root=pets  dataset=folder dataset.root=''  dataset=folder dataset.root=[pets]
model=timm  model=timm model.name=nothing  model=timm model.name=''  model=timm model.name=[resnet10t]
model=timm model.name=../resnet10t  model=timm model.name=resnet10t +model.block=basic
model=timm model.name=hf-hub:nobody/nothing  model=timm model.name=resnet10t model.heads=3
model=timm model.name=resnet10t +model.nothing=1
model=timm model.name=vit_tiny_patch16_224  model=timm model.name=resnet10t.nothing
model=torchvision model.name=resnet18  model=torchvision model.name=nothing  model=torchvision model.name=raft_small
model=torchvision model.name=null  model.name=resnet10t  model=resnet10t
model.pretrained=true  model.pretrained=false  model.pretrained=nowhere.pt  model.pretrained=notes.txt
model.pretrained=results  model.pretrained=3  model.pretrained=''  model.pretrained=pets/cat/0.png
model.pretrained_digest=abc  model.pretrained=data/cache/cifar100.pt
recipe=own recipe.lr=0.1  recipe=own recipe.batch_size=99  recipe=own recipe.epochs=0  recipe=own recipe.rho=auto
schedule=ae_sam schedule.delta=1.5  schedule=ae_sam schedule.delta=x  schedule=ae_sam schedule.lambda_1=null
schedule=ae_sam schedule.p=0.5  schedule=ae_sam schedule.lambda_2=nan  schedule=ae_sam scheme=grst
variant=friendly variant.sigma=x  variant=friendly variant.decay=-1  variant=friendly variant.eta=0
variant=friendly variant.decay=null  variant=friendly variant.sigma=inf
dataset.validation=-1  dataset.validation=49  dataset.validation=x  dataset.label_noise=1.5
""")
"""Values that have the right type, values of keys whose type is not declared, and pairs of keys that contradict each
other, for a small run on the digits."""

CONTRADICTIONS = separated("""
scheme=sam schedule=constant  scheme=sgd schedule=sine  scheme=gnr schedule=tail  scheme=sam schedule.p=0.5
scheme=sam scheme.gamma_ratio=2  scheme=rst scheme.gamma_ratio=auto  scheme=gnr scheme.gamma_ratio=auto
scheme=grst schedule=never  scheme=grst schedule.p=0  scheme=sgd schedule=always
recipe.batch_size=60000  dataset.validation=49900  dataset.validation=50000  recipe.perturbation_batch=60
recipe.perturbation_batch=512  recipe.warmup_epochs=201  model=vit_s recipe.epochs=30  dataset.channels=2
scale=cpu dataset=imagenet model=resnet50  scale=cpu dataset=digits  dataset=digits model=vgg16_bn
dataset=digits model=resnet50  dataset=digits dataset.source=parquet  dataset=digits dataset.source=torchvision
dataset=cifar10 dataset.image_size=16  dataset=cifar10 dataset.channels=1 dataset.mean=[0] dataset.std=[1]
dataset=digits model.depth=17  dataset=digits optimizer.momentum=0  dataset=imagenet dataset.num_classes=3
scheme=sam schedule=ae_sam  scheme=sgd schedule=ae_sam  scheme=gnr schedule=ae_sam  scheme=grst schedule=ae_sam
scale=digits dataset=imagenet  scale=digits dataset=digits model=resnet50
scale=digits dataset=digits dataset.root=pets  scale=digits dataset=digits dataset.train_images=1001
scale=digits dataset=digits dataset.source=parquet  scale=digits dataset=folder dataset.root=pets
dataset=folder scale=cpu  scale=gpu dataset=digits  scale=gpu dataset=imagenet
dataset=folder dataset.root=pets dataset.source=digits
dataset=folder dataset.root=pets recipe.batch_size=13  dataset=folder dataset.root=pets dataset.validation=12
""")
"""Pairs of keys that contradict each other in a run at full size."""


OWN = ["dataset=folder", "dataset.root=pets", "dataset.image_size=32", "augmentation=none", "recipe.batch_size=12"]
OWN += ["model=wrn10_1", "recipe.epochs=1", "device=cpu", "wandb.mode=disabled", "paths.cache=data/cache"]
"""The overrides of a run of one step on the user's own images."""

WRONG_OF_OWN_IMAGES = separated("""
dataset.num_classes=2  dataset.num_classes=4  dataset.train_images=13  dataset.test_images=4  dataset.validation=1
dataset.digest=abc  dataset.digest=3  dataset.digest=''  dataset.channels=1  dataset.channels=4
dataset.channels=1 dataset.mean=[0] dataset.std=[1]  dataset.source=parquet  dataset.source=torchvision
dataset.source=digits  dataset.image_size=0  dataset.image_size=big  dataset.image_size=null
dataset.mean=[0]  dataset.std=[0,0,0]  dataset.classes=[cat,dog]  dataset.train_images=0
dataset.label_noise=-1  paths.cache=null  recipe.batch_size=13
recipe.perturbation_batch=5  model.num_classes=2  model.in_channels=1  model=resnet50 dataset.image_size=8
model=vit_ti dataset.image_size=30  model=timm model.name=resnet10t model.num_classes=5
model=timm model.name=vit_tiny_patch16_224 dataset.image_size=8  model=torchvision model.name=alexnet
model=torchvision model.name=mobilenet_v3_small model.pretrained=true
model=torchvision model.name=vit_b_32 +model.image_size=31
model=torchvision model.name=fasterrcnn_resnet50_fpn  model=torchvision model.name=resnet18 +model.nothing=1
augmentation=cutout augmentation.cutout=99
""")
"""Values that are wrong for images of three classes, of which 12 are for training and 3 for the test."""


def of_own_images(draw: random.Random) -> Iterator[Wrong]:
    """`WRONG_OF_OWN_IMAGES`."""
    return (Wrong(TRAIN if "model" in command else SHOW, [*OWN, *command.split()]) for command in WRONG_OF_OWN_IMAGES)


def of_other_values(draw: random.Random) -> Iterator[Wrong]:
    """`OTHER_VALUES` and `CONTRADICTIONS`."""
    for command in OTHER_VALUES:
        own = command.split()
        groups = {text.split("=")[0] for text in own}
        base = [text for text in TINY if text.split("=")[0] not in groups]
        # Only train.py builds networks and optimizers; the other script is quicker.
        yield Wrong(TRAIN if re.search("model|optimizer|network", command) else SHOW, [*base, *own])
    for command in CONTRADICTIONS:
        # A run at full size of what is right would train for hours, which one on the digits would not.
        yield Wrong(TRAIN if "digits" in command else SHOW, command.split())


GROUPS = separated("augmentation  dataset  model  optimizer  recipe  scale  schedule  scheme  variant")
CHOICES = ["huge", "", "'../x'", "RESNET18", "cifar10.yaml", "'a b'", "ünï", "/etc/passwd", "'a/b'", "x" * 5000]
CHOICES += ['"a\\nb"', "_"]


def of_unknown_choices(draw: random.Random) -> Iterator[Wrong]:
    """Files that no group of the configs has."""
    for group in GROUPS:
        for choice in draw.sample(CHOICES, 3):
            script, names = draw.choice([(TRAIN, []), (SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"])])
            yield Wrong(script, [*names, f"{group}={choice}"])


# ------------------------------------------------------------------------------------------ words that are no key=value

GRAMMAR = separated("""
a==b  =  =1  seed  seed=[1  seed=1]  seed={a:1  seed={a}  seed=(1  seed='1  seed="1  seed=a b c=
+seed=1  +seed  ++  ~  ~dataset  ~seed=7  ~nothing  ~dataset.name  ~recipe.epochs  ~model  ~paths.runs
-  seed=1 2  ключ=1  seed=1,2  seed=range(3)  seed=choice(1,2)  seed=glob(*)  seed=sort(3,1)
seed=interval(0,1)  seed=int(x)  hydra.run.dir=  hydra/launcher=nothing  hydra.nothing=1
recipe..epochs=1  .epochs=1  recipe.=1  recipe.epochs.x=1  recipe@other=vit  model@=resnet18
seed=${  seed=${seed}  seed=${a:b  recipe.epochs==1  recipe.epochs=1=2  recipe epochs=1  recipe.epochs =1
recipe.epochs=[1,  recipe.epochs=(1)  🙂=1  seed=🙂  recipe.epochs=1,2
""")
GRAMMAR += [" ", "seed=\x00", "seed=\x1b[31m", "seed=\r", "seed=1\n2", "seed\n=1", "\u2028=1", "seed=\u2028"]
GRAMMAR += ["a" * 20000, "a" * 5000 + "=1", "seed=" + "[" * 200, "\udcff=1", "seed=\udcff", "a.b=\udcff"]
GRAMMAR += ["recipe.epochs=\u2028", "recipe.epochs=\x00"]


def of_broken_grammar(draw: random.Random) -> Iterator[Wrong]:
    """Words that Hydra cannot parse or that change what may not be changed, and random letters."""
    for text in GRAMMAR:
        yield Wrong(TRAIN, [text])
        if "=" in text and not text.startswith(("-", "hydra.run.dir")):  # Only train.py makes that folder.
            script, names = draw.choice([(SHOW, []), (SWEEP, ["two"]), (REPORT, ["two"]), (IMPORT, ["nowhere"])])
            yield Wrong(script, [*names, text])
    letters = string.ascii_lowercase + string.digits + "=.+~@:,[](){}'\"$ \\/*\t\nß–"
    for _ in range(40):
        text = "".join(draw.choices(letters, k=draw.randrange(1, 12)))
        yield Wrong(TRAIN, ["seed=-1" if text[0] == "-" else text])


# ------------------------------------------------------------------------------------------- wrong options and names


def commands(text: str) -> list[list[str]]:
    """Commands, two spaces or a new line apart, of words that a space separates."""
    return [command.split(" ") for command in separated(text)]


ODD_NAMES = [["\udcff"], ["x" * 5000], [""], [" "]]
COMMANDS = {
    TRAIN: commands("--nothing  -x  --cfg  --cfg nothing  --config-name nothing  --config-dir /nowhere"),
    SWEEP: [
        *commands("--dry-run  two --workers  two --workers 0  two --workers -3  two --nothing  two --workers x"),
        *commands("two --workers 1.5  scale=smoke  scale=huge two  nothing  two nothing  ../tables/two  two.yaml"),
        *commands("/etc/passwd  ünï  two two nothing  TWO  .  *  tables  figures  two --dry-run --dry-run=1"),
        *commands("two --launcher nothing  two -n 2"),
        *commands(
            "claims scale=cpu  claims nothing  grst-helps nothing  grst-helps scale=huge  claims two --workers 0"
        ),
        *commands("grst-helps seed=1,2  claims --workers 1 --launcher slurm  grst  GRST-HELPS  grst-helps.yaml"),
        *([], ["two", "--workers", ""], ["two", "--workers", "9" * 30, "scale=x"], ["two\n"], ["tw\x00o"]),
        *ODD_NAMES,
    ],
    REPORT: [
        *commands(
            "scale=smoke  nothing  two nothing  ../tables/two  two.yaml  --nothing  two --page=3  two scale=huge"
        ),
        *commands("tables  .  two paths.runs=notes.txt  two paths.runs=notes.txt/runs"),
        *commands("claims scale=cpu  claims scale=huge  claims nothing  claims grst-helps  claims seed=x  grst-helps"),
        *commands("claims paths.runs=notes.txt  --page scale=huge  --page seed=x  two --prune=1  --prune"),
        *commands("two claims scale=cpu  two --page scale=cpu"),
        *([], ["two\n"], ["tw\x00o"]),
        *ODD_NAMES,
    ],
    PREPARE: [
        *commands("nothing  cifar10 cifar100  ../digits  cifar10.yaml  a=b  digits --root  cifar10 --root nowhere"),
        *commands("cifar10 --root notes.txt  cifar10 --root a=b  cifar10 --root [1  imagenet --root nowhere"),
        *commands("imagenet --root data  imagenet --root notes.txt  --nothing  digits -x  cifar10 --root a,b"),
        *commands("cifar10 --root ${x  cifar10 --root null"),
        *([], ["\n"], ["\x00"], *(["cifar10", "--root", text] for text in ("\n", "\x00", "x" * 5000))),
        *ODD_NAMES,
    ],
    SHOW: [
        *commands("--epoch  --epoch x  --epoch 1.5  --output  --nothing  two"),
        *([*TINY, *words] for words in commands("--epoch -1  --output nowhere/a.png  --output results  --nothing")),
        *([*TINY, "--output", name] for name in ("", "a.nothing", "notes.txt/a.png", "x" * 300 + ".png", "a\x00.png")),
        *([""], [" "], ["\x00"]),
    ],
    RUNS: [
        *commands("nothing  list --nothing  list --sort  list --sort nothing  list --mean=1  show  compare  remove"),
        *commands("show nothing  compare nothing  remove nothing  remove nothing --yes  remove seed=99 --yes"),
        *commands("compare scheme=sgd  show digits  remove digits --yes  remove --yes  list show  list recipe=cifar"),
        *commands("list recipe.epoch=3  list =  list =1  list a=b  list seed  show .  show /  show ..  show data"),
        *commands("show notes.txt  remove pets --yes  list paths.nothing=1  list paths.runs=  list paths.runs=null"),
        *commands("list paths.runs=notes.txt  remove scheme=sgd  remove scheme=sgd,grst  remove status=done"),
        *commands("remove status=running --yes  show --mean scheme=sgd  compare --sort status scheme=sgd,grst"),
        *commands("list --yes  list scale=huge nothing  show scheme=sgd --yes"),
        *commands("show app  remove app --yes  remove ./app --yes  remove results/../app --yes  remove .. --yes"),
        *([], ["remove", ""], ["remove", "", "--yes"], ["remove", " ", "--yes"], ["remove", "*", "--yes"]),
        *(["show", *name] for name in ODD_NAMES),
    ],
    PLOT: [
        *commands("nothing  two nothing  two nothing=1  two scale=huge  scheme=sam  seed=99"),
        *commands("tables scheme=sam  claims  digits  --output  scheme=sgd --output  two --nothing  two seed=x"),
        *commands("scheme=sgd --output notes.txt/x  two --output /dev/null/x  two paths.runs=notes.txt"),
        *commands("two paths.runs=nowhere  scheme=sgd paths.runs=nowhere  recipe.epoch=1  scheme=sgd nothing"),
        *commands("scheme=sgd --output .  scheme=sgd --output /  two.yaml  =  ..  data  pets"),
        *([], ["scheme=sgd", "--output", ""], ["scheme=sgd", "--output", "x" * 300]),
        *ODD_NAMES,
    ],
    BENCH: [
        *commands("nothing  vectors nothing  VECTORS  recipes  --rounds  --rounds 0  vectors --rounds -1"),
        *commands("vectors --rounds x  vectors --rounds 1.5  --nothing  vectors --device nothing  vectors --output"),
        *commands("vectors --device cuda:99  vectors --device meta  vectors --device cpu:  vectors seed=1"),
        *commands("vectors --output notes.txt  vectors --output notes.txt/x  vectors --output /dev/null"),
        *(["vectors", "--device", ""], ["vectors", "--output", "x" * 300]),
        *ODD_NAMES,
    ],
    IMPORT: [
        *commands("nowhere  notes.txt  data  a/b/c  nowhere --group  data seed=x  data model=nothing  data --nothing"),
        *commands("data more  data paths.runs=  data --group nothing  data/cache/cifar100.pt"),
        *([], ["\x00"], ["\n"]),
        *ODD_NAMES,
    ],
}


def of_options(draw: random.Random) -> Iterator[Wrong]:
    """Wrong options, names and paths of every script."""
    return (Wrong(script, arguments) for script, wrong in COMMANDS.items() for arguments in wrong)


FAMILIES: dict[str, Callable[[random.Random], Iterator[Wrong]]] = {
    "key": of_every_key,
    "misspelt": of_misspelt_keys,
    "value": of_other_values,
    "own images": of_own_images,
    "choice": of_unknown_choices,
    "grammar": of_broken_grammar,
    "option": of_options,
}
WRONG = {name: list(family(random.Random(name))) for name, family in FAMILIES.items()}
