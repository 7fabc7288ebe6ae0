"""What Hydra and pydantic refuse is answered in one sentence, which names key, value and fix."""

import pytest
from refusals import refusal

from rst.experiments.compose import compose

# A command, and what the sentence must say: key, value and fix.
REFUSED = [
    # choices that are not there: the sentence lists all that are
    ("scheme=asam", "scheme=asam", "gnr, grst, rst, sam, sgd"),
    ("model=resnet19", "model=resnet19", "resnet18"),
    ("schedule=cosine", "schedule=cosine", "cosine_down, cosine_up"),
    ("dataset=mnist", "dataset=mnist", "cifar10, cifar100, digits, folder, imagenet"),
    ("augmentation=mixcut", "augmentation=mixcut", "basic, cutout, mixup, none"),
    ("recipe=table16", "recipe=table16", "cifar"),
    ("scale=tiny", "scale=tiny", "paper, smoke"),
    ("recipe=null", "is chosen by the name of one of its files", "write <group>=<name>"),
    # misspelt keys: the sentence says what was meant
    ("recipe.epoch=3", "recipe.epoch", "did you mean recipe.epochs?"),
    ("recipe.btach_size=3", "recipe.btach_size", "did you mean recipe.batch_size?"),
    ("variant.roh=0.2", "variant.roh", "did you mean variant.rho?"),
    ("optimiser.lr=0.2", "optimiser.lr", "did you mean optimizer.lr?"),
    ("schedule.q=0.2", "no key schedule.q with this choice of schedule", "configs/schedule has the keys of each"),
    ("scheem=rst", "there is no key scheem", "did you mean scheme?"),
    ("SCALE=smoke", "there is no key SCALE", "did you mean scale?"),
    ("tables=table03", "there is no key tables", "scripts/sweep.py"),
    ("scale", "scale has no value", "write key=value"),
    # keys that are added with a plus, but that nothing reads
    ("+recipe.foo=1", "there is no key recipe.foo", "did you mean recipe."),
    ("+recipe.batchsize=64", "there is no key recipe.batchsize", "did you mean recipe.batch_size?"),
    ("+sed=1", "there is no key sed", "did you mean seed?"),
    ("+foo=1", "there is no key foo", "--cfg job"),
    # keys that are taken away
    ("~optimizer.lr", "optimizer.lr is missing", "write optimizer.lr=<value>"),
    # values of another type
    ("+model.foo={_target_:os.system}", "model.foo=", "os.system", "write a number, a text, true, false or a list"),
    ("recipe.epochs=two", "recipe.epochs=two", "an integer from 1"),
    ("recipe.epochs=2.5", "recipe.epochs=2.5", "an integer from 1"),
    ("recipe.epochs=[1,2]", "recipe.epochs=[1, 2]", "an integer from 1"),
    ("recipe.batch_size=true", "recipe.batch_size=True", "an integer from 1"),
    ("optimizer.lr=fast", "optimizer.lr=fast", "a number from 0"),
    ("model=wrn28_10 model.depth=deep", "model.depth=deep", "an integer"),
    ("model=vit_s model.dropout=[0.1]", "model.dropout=[0.1]", "a number"),
    ("optimizer.momentum=high", "optimizer.momentum=high", "a number"),
    ("scheme.gamma_ratio=big", "scheme.gamma_ratio=big", "auto or a number from 0"),
    ("dataset.num_classes=ten", "dataset.num_classes=ten", "an integer from"),
    ("channels_last=maybe", "channels_last=maybe", "true or false"),
    ("measure_sharpness=1", "measure_sharpness=1", "true or false"),
    ("tf32=yes", "tf32=yes", "true or false"),
    ("paths.runs=null", "paths.runs=", "a text"),
    # values out of range
    ("variant.rho=-1", "variant.rho=-1", "a number from 0"),
    ("variant.rho=inf", "variant.rho=inf", "a number from 0"),
    ("scheme.gamma_ratio=-2", "scheme.gamma_ratio=-2", "auto or a number from 0"),
    ("recipe.epochs=0", "recipe.epochs=0", "an integer from 1"),
    ("recipe.batch_size=-4", "recipe.batch_size=-4", "an integer from 1"),
    ("recipe.clip_norm=-1", "recipe.clip_norm=-1", "null or a number from 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "a number from 0"),
    ("dataset.label_noise=2", "dataset.label_noise=2", "from 0 to 1"),
    ("dataset.image_size=0", "dataset.image_size=0", "an integer from 1"),
    ("dataset.num_classes=0", "dataset.num_classes=0", "an integer from"),
    ("dataset.source=web", "dataset.source=web", "auto, parquet, torchvision, digits"),
    ("dataset.std=[0.3,0,0.3]", "dataset.std=[0.3, 0, 0.3]", "numbers above 0"),
    ("evaluate_every=0", "evaluate_every=0", "an integer from 1"),
    ("seed=-1", "seed=-1", "an integer from 0"),
    ("devices=0", "devices=0", "an integer from 1"),
    ("autocast=float8", "autocast=float8", "null, bfloat16, float16"),
    ("max_seeds=0", "max_seeds=0", "an integer from 1"),
    ("wandb.mode=on", "wandb.mode=on", "online, offline, disabled"),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in REFUSED])
def test_a_wrong_choice_key_or_value_is_refused_in_one_sentence_with_the_fix(command: str, words: list[str]) -> None:
    message = refusal(lambda: compose(command.split()))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("path", ["/ü/runs", "~/runs", "/a=b/runs", "/a(1)/runs"])
@pytest.mark.parametrize("key", ["paths.runs", "dataset.root", "evaluate"])
def test_a_path_that_needs_quotes_is_refused_with_the_quotes_to_write(key: str, path: str) -> None:
    message = refusal(lambda: compose([f"{key}={path}"]))
    assert message.startswith(f"{key}={path} has ")
    assert message.endswith(f"""write '{key}="{path}"'.""")
