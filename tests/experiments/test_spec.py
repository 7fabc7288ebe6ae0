"""`RunSpec`: frozen, checked whenever it is made, and the same again from its plain data."""

import pickle
from typing import Any

import pytest
import yaml
from conftest import PROCESSES
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_compose import DATASETS, MODELS, SCHEMES, choices

import rst
from rst.experiments.compose import compose, validated
from rst.experiments.errors import InputError, NotAtThisScale
from rst.experiments.spec import RunSpec

SPEC = compose(["dataset=digits", "model=wrn10_1"])


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    """Choices of groups, and values of a few keys, that fit together."""
    scheme = draw(st.sampled_from(SCHEMES))
    choice = {
        "dataset": draw(st.sampled_from(DATASETS)),
        "scheme": scheme,
        "model": draw(st.sampled_from(MODELS)),
        "variant": draw(st.sampled_from(choices("variant"))),
        "augmentation": draw(st.sampled_from(choices("augmentation"))),
    }
    if scheme in ("rst", "grst"):
        choice["schedule"] = draw(st.sampled_from(sorted({*choices("schedule")} - {"never"})))
    if (scheme, choice.get("schedule")) == ("grst", "ae_sam"):
        choice["scheme.gamma_ratio"] = "2"  # AE-SAM's gate has no mean from which "auto" follows.
    rate = st.floats(0, 1e30) | st.integers(0, 100)
    return compose([f"{group}={name}" for group, name in choice.items()]).changed(
        seed=draw(st.integers(0, 10**9)),
        autocast=draw(st.sampled_from([None, "bfloat16", "float16"])),
        tf32=draw(st.booleans()),
        variant={"rho": draw(rate)},
        optimizer={"lr": draw(rate), "extra": draw(rate | st.booleans() | st.lists(rate | st.text()) | st.none())},
        recipe={"clip_norm": draw(st.none() | rate)},
        wandb={"group": draw(st.none() | st.sampled_from(["table03", "1.5", "null", "yes", "ΔηT", "a: b", " "]))},
    )


# ----------------------------------------------------------------------------------------------------------- plain data


@settings(max_examples=40)
@given(spec=specs())
def test_spec_is_the_same_again_from_its_plain_data_from_yaml_and_from_pickle(spec: RunSpec) -> None:
    """With the type of every value: 1 does not become 1.0, nor the text "1.5" a number."""
    plain = spec.dump()
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    for again in (RunSpec.model_validate(plain), validated(yaml.safe_load(text)), pickle.loads(pickle.dumps(spec))):
        assert again == spec
        assert repr(again) == repr(spec)
        assert again.dump() == plain


def test_spec_reaches_another_process_as_it_is() -> None:
    """Such as a rank of the run, or a worker of a sweep."""
    with PROCESSES.Pool(1) as pool:
        assert pool.apply(RunSpec.dump, (SPEC,)) == SPEC.dump()


# -------------------------------------------------------------------------------------------------- frozen, and changed


@pytest.mark.parametrize(("part", "key"), [("", "seed"), ("recipe", "epochs"), ("model", "depth"), ("variant", "rho")])
def test_spec_cannot_be_changed_in_place(part: str, key: str) -> None:
    owner = getattr(SPEC, part) if part else SPEC
    with pytest.raises(ValidationError, match="frozen"):
        setattr(owner, key, 3)


def test_change_merges_into_a_group_and_leaves_the_first_spec_alone() -> None:
    changed = SPEC.changed(seed=3, wandb={"group": "table03"}, dataset={"label_noise": 0.2})
    assert (changed.seed, changed.wandb.group, changed.dataset.label_noise) == (3, "table03", 0.2)
    assert (SPEC.seed, SPEC.wandb.group, SPEC.dataset.label_noise) == (0, None, 0.0)
    assert changed.changed(seed=0, wandb={"group": None}, dataset={"label_noise": 0.0}) == SPEC


def test_change_adds_an_option_of_the_optimizer() -> None:
    assert SPEC.changed(optimizer={"fused": True}).optimizer.options["fused"] is True


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"seed": -1}, ValidationError, "write an integer from 0"),
        ({"recipe": {"epochs": 2.5}}, ValidationError, "write an integer from 1"),
        ({"recipe": {"foo": 1}}, ValidationError, r"recipe\.foo"),
        ({"foo": 1}, ValidationError, "foo"),
        ({"variant": {"nested": {"_target_": "os.system"}}}, ValidationError, r"variant\.nested"),
        ({"recipe": {"batch_size": 63}}, InputError, "recipe.perturbation_batch=64 does not divide"),
        ({"recipe": {"warmup_epochs": 21}}, InputError, "recipe.warmup_epochs=21 is longer than the run"),
        ({"devices": 2}, InputError, "devices=2 do not divide the 1 perturbations of a step"),
        ({"scheme": {"name": "sam"}}, InputError, "scheme=sam means p = 1 at every step"),
        ({"schedule": {"p": 0}}, InputError, "never takes a sharp step"),
        ({"schedule": {"p": 2}}, InputError, "schedule: p"),
        ({"datasets": ["cifar10"]}, NotAtThisScale, "has no digits, only cifar10"),
        ({"model": {"num_classes": 7}}, InputError, "model.num_classes=7 is not dataset.num_classes=10"),
    ],
    ids=str,
)
def test_change_is_checked_anew(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SPEC.changed(**changes)


# ------------------------------------------------------------------------------------------------- what follows from it


def test_numbers_of_steps_leave_out_held_out_images_and_the_last_partial_batch() -> None:
    spec = SPEC.changed(dataset={"train_images": 200, "validation": 7}, recipe={"epochs": 3})
    assert (spec.steps_per_epoch, spec.total_steps) == (3, 9)


@pytest.mark.parametrize(("perturbation_batch", "images"), [(16, 16), (64, 64), (None, 64)])
def test_a_whole_batch_shares_a_perturbation_unless_another_number_is_given(
    perturbation_batch: int | None, images: int
) -> None:
    assert SPEC.changed(recipe={"perturbation_batch": perturbation_batch}).perturbation_batch == images


@pytest.mark.parametrize("name", ["linear", "cosine_up", "tail"])
def test_auto_ratio_is_one_over_the_mean_of_p_over_the_steps_of_the_run(name: str) -> None:
    spec = compose(["scheme=grst", f"schedule={name}", "recipe.epochs=40"])
    p = [spec.p(t, spec.total_steps) for t in range(spec.total_steps)]
    assert spec.mean_p == pytest.approx(sum(p) / len(p))
    assert spec.gamma_ratio == pytest.approx(len(p) / sum(p))


@pytest.mark.parametrize(
    ("scheme", "variant", "passes"),
    [("sgd", "sam", 1), ("sam", "sam", 2), ("rst", "sam", 1.5), ("sam", "looksam", 1.2), ("sam", "friendly", 2)],
)
def test_expected_work_counts_both_passes_of_sharp_steps(scheme: str, variant: str, passes: float) -> None:
    spec = compose(["dataset=digits", "model=wrn10_1", f"scheme={scheme}", f"variant={variant}"])
    assert spec.expected_passes == pytest.approx(passes * spec.total_steps)


def test_variant_is_built_anew_each_time_with_its_options() -> None:
    """Two runs of one process must not share the state of a variant."""
    spec = compose(["variant=looksam", "variant.k=3"])
    first, second = spec.build_variant(), spec.build_variant()
    assert isinstance(first, rst.variants.LookSAM)
    assert first.k == 3
    assert first is not second


@pytest.mark.parametrize(
    ("overrides", "stands_in"),
    [(["dataset=digits"], False), (["dataset=cifar10"], False), (["dataset=cifar10", "dataset.source=digits"], True)],
    ids=str,
)
def test_digits_stand_in_for_another_data_set_only(overrides: list[str], stands_in: bool) -> None:
    assert compose(overrides).stands_in == stands_in


# ------------------------------------------------------------------------------- a gate that the clean pass decides

AE_SAM = ["dataset=digits", "model=wrn10_1", "scheme=rst", "schedule=ae_sam"]


def test_a_schedule_without_p_has_no_mean_and_is_expected_to_make_half_of_the_steps_sharp() -> None:
    spec = compose(AE_SAM)
    assert spec.mean_p is None
    assert spec.expected_passes == 1.5 * spec.total_steps


def test_the_automatic_ratio_is_refused_without_a_mean_of_p() -> None:
    with pytest.raises(InputError, match=r"^scheme\.gamma_ratio=auto .*: write scheme\.gamma_ratio=<a number>"):
        compose([*AE_SAM, "scheme=grst"])
    assert compose([*AE_SAM, "scheme=grst", "scheme.gamma_ratio=2"]).gamma_ratio == 2


def test_devices_matter_where_the_first_micro_batch_decides_for_the_step() -> None:
    assert not compose([*AE_SAM, "recipe.perturbation_batch=null"]).depends_on_devices
    assert compose([*AE_SAM, "recipe.perturbation_batch=16"]).depends_on_devices


@pytest.mark.parametrize("group", ["dataset", "recipe", "wandb"])
def test_a_group_that_is_taken_away_is_named(group: str) -> None:
    with pytest.raises(InputError, match=f"^{group} is missing: leave ~{group} out"):
        compose([f"~{group}"])
