"""The arguments of the variants: their ranges, their names, and options of `rst.RST` that do not go with some."""

import math

import pytest
from textbook import left
from textbook_variants import device_of, network
from variant_cases import ALWAYS, NEVER, RHO, VARIANTS, combining

import rst
from rst.variants import ASAM, ESAM, GSAM, NAMES, SSAMD, SSAMF, LookSAM

with_per_sample_loss = pytest.mark.parametrize("name", [name for name in VARIANTS if NAMES[name].needs_per_sample_loss])

BAD = [
    (lambda: LookSAM(k=0), "k must be an integer >= 1, got 0"),
    (lambda: LookSAM(k=2.5), "k must be an integer >= 1, got 2.5"),
    (lambda: LookSAM(alpha=-0.1), "alpha must be a finite number >= 0, got -0.1"),
    (lambda: GSAM(alpha=-0.1), "alpha must be a finite number >= 0, got -0.1"),
    (lambda: GSAM(alpha=math.nan), "alpha must be a finite number >= 0, got nan"),
    (lambda: ASAM(eta=-0.1), "eta must be a finite number >= 0, got -0.1"),
    (lambda: ESAM(beta=0), "beta .* above 0, got 0"),
    (lambda: ESAM(gamma=0), "gamma .* above 0, got .*0"),
    (lambda: ESAM(beta=1.5), r"beta must be a number in \[0, 1\], got 1.5"),
    (lambda: ESAM(gamma=-0.5), r"gamma must be a number in \[0, 1\], got -0.5"),
    (lambda: SSAMF(sparsity=1.0), "sparsity must be below 1"),
    (lambda: SSAMD(sparsity=1.0), "sparsity must be below 1"),
    (lambda: SSAMF(sparsity=-0.1), r"sparsity must be a number in \[0, 1\], got -0.1"),
    (lambda: SSAMF(samples=0), "samples must be an integer >= 1, got 0"),
    (lambda: SSAMF(update_every=0), "update_every must be an integer >= 1, got 0"),
    (lambda: SSAMD(update_every=0), "update_every must be an integer >= 1, got 0"),
    (lambda: SSAMD(drop=1.5), r"drop must be a number in \[0, 1\], got 1.5"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_value_is_refused_in_a_sentence_that_names_it(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_the_variant_with_its_default_options(name):
    method = rst.RST(network(), RHO, ALWAYS, total_steps=1, variant=name)
    method.backward(device_of(method.model, 0))
    assert type(method.variant) is NAMES[name]
    assert left(method.model).isfinite().all()


@pytest.mark.parametrize("value", ["sams", None, ASAM])
def test_an_unknown_variant_is_refused_with_a_list_of_the_names(value):
    with pytest.raises(ValueError, match="sam, asam, gsam, looksam, friendly, esam, ssam_f, ssam_d, or an instance"):
        rst.RST(network(), RHO, ALWAYS, variant=value)


@pytest.mark.parametrize("schedule", [NEVER, ALWAYS], ids=str)
@with_per_sample_loss
def test_passes_refuses_a_variant_that_needs_per_sample_losses_and_says_what_to_write(name, schedule):
    method = rst.RST(network(), RHO, schedule, variant=VARIANTS[name]())
    with pytest.raises(ValueError, match=r"needs the loss of each sample.*backward\(lambda index"):
        method.passes()


@with_per_sample_loss
def test_a_closure_that_returns_one_loss_in_place_of_one_for_each_sample_is_refused(name):
    model = network()
    method = rst.RST(model, RHO, ALWAYS, variant=VARIANTS[name]())
    with pytest.raises(ValueError, match="loss of each sample"):
        method.backward(lambda index: device_of(model, 0)(index).mean())


@combining
def test_sync_perturbation_is_refused_for_a_variant_that_combines_g_and_g_s(name):
    with pytest.raises(ValueError, match="sync_perturbation does not go with"):
        rst.RST(network(), RHO, ALWAYS, variant=VARIANTS[name](), sync_perturbation=True)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_masks_of_ssam_depend_on_the_number_of_devices(name):
    assert NAMES[name].depends_on_devices == name.startswith("ssam")
