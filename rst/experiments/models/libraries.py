"""Any network of timm or torchvision, with the classes and the images of the data set."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rst.experiments.errors import InputError, one_sentence
from rst.experiments.models.weights import load_weights
from rst.guards import preserved_buffers

# Both libraries take more than a second to import, so a function imports one when it builds a network.


def timm_network(
    name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build a network of timm. It maps images [N, in_channels, H, H] to logits [N, num_classes].

    Args:
        name: as in ``timm.list_models()``, with or without the tag of its weights.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: side H of the images in pixels.
        pretrained: whether timm downloads its weights, which it fits to the channels and, where it can, to the size.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: there is no such network, or it does not take such images or options.
        InputError: its weights cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    try:
        fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    except RuntimeError as error:  # The network has no weights of this tag.
        raise _unknown("timm", name, timm.list_models()) from error
    size = {"img_size": image_size} if fixed and "img_size" not in options else {}

    def build() -> nn.Module:
        settings = {"num_classes": num_classes, "in_chans": in_channels, **size, **options}
        if not pretrained:
            return timm.create_model(name, **settings)
        return _downloaded(name, lambda: timm.create_model(name, pretrained=True, **settings))

    return _fitting(name, num_classes, in_channels, image_size, options, build)


def torchvision_network(
    name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build a network of torchvision, for images [N, 3, H, H]; arguments, result and errors as of `timm_network`.

    ``options`` are further arguments of ``torchvision.models.get_model``.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    if in_channels != 3:
        raise ValueError(f"model=torchvision takes 3 channels, not dataset.channels={in_channels}: take model=timm.")
    size = {"image_size": image_size} if name.startswith("vit_") and "image_size" not in options else {}
    # What they add to the loss of training is not in a loss of this project.
    plain = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}

    def build() -> nn.Module:
        return models.get_model(name, weights=None, num_classes=num_classes, **{**size, **plain, **options})

    model = _fitting(name, num_classes, in_channels, image_size, options, build)
    if pretrained:
        weights = _downloaded(name, lambda: models.get_model_weights(name).DEFAULT.get_state_dict(progress=False))
        own = {key: value for key, value in weights.items() if not (plain and key.startswith(("aux", "AuxLogits")))}
        load_weights(model, own, f"model.pretrained=true of {name}")
    return model


def _unknown(library: str, name: str, names: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name.partition(".")[0], names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"{library}.list_models() lists all."
    return ValueError(f"model.name={name} is no network of {library}: {hint}")


def _downloaded(name: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # Networks fail in many ways.
        raise InputError(
            f"model.pretrained=true finds no weights for model.name={name} ({_reason(error)}): write "
            "model.pretrained=<a file of weights>."
        ) from error


def _reason(error: Exception) -> str:
    return one_sentence(error).rstrip(".")


def _fitting(
    name: str,
    num_classes: int,
    channels: int,
    image_size: int,
    options: Mapping[str, Any],
    build: Callable[[], nn.Module],
) -> nn.Module:
    """The network, which has taken two such images as it does in training; its buffers are as before."""
    try:
        model = build()
        with torch.no_grad(), preserved_buffers(model):
            logits = model(torch.zeros(2, channels, image_size, image_size))
    except InputError:
        raise
    except Exception as error:  # Libraries check little before they compute with it.
        own = " or ".join(f"model.{key}={value}" for key, value in options.items())
        raise ValueError(
            f"model.name={name} does not take images of dataset.image_size={image_size} and dataset.channels="
            f"{channels}{f', or not {own}' * bool(own)} ({_reason(error)}): "
            f"{'leave that out, or ' * bool(own)}take another dataset.image_size or another network."
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        raise ValueError(f"model.name={name} does not map images to one logit a class: take another network.")
    return model
