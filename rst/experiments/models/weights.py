"""The weights that a network begins with, where they are not drawn: those of a file, but for its head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INSIDE = ("state_dict", "model")
"""The keys under which checkpoints keep the weights: timm's and Lightning's, and those of this project and others."""


def read_weights(path: str) -> dict[str, Tensor]:
    """The weights in a file of ``torch.save`` or safetensors, by their names in the network. It runs no code in it.

    They may stand alone or in a checkpoint, such as that of a run; a prefix that `DistributedDataParallel` or
    ``torch.compile`` has left is taken off.

    Raises:
        ValueError: the file has no weights, or cannot be read.
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damage shows as an error of pickle, zipfile, torch, safetensors or the file system.
        raise ValueError(f"model.pretrained={path} has no weights that torch.load can read: copy it again.") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in INSIDE if isinstance(content.get(key), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    if not items or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in items):
        raise ValueError(f"model.pretrained={path} has no weights by name: save model.state_dict().")
    return {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in items}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network these weights. Its head keeps its own where they lack it, or have one of another size.

    Args:
        model: the network.
        weights: tensors by their names in the network.
        source: where they are from, for the errors.

    Raises:
        ValueError: they are not those of such a network.
    """
    own, heads = model.state_dict(), tuple(f"{name}." for name in head_names(model))
    taken = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    for name in dict.fromkeys([*weights, *own]):
        if name in taken or name.startswith(heads):
            continue
        theirs, ours = (list(w[name].shape) if name in w else "missing" for w in (weights, own))
        raise ValueError(
            f"{source} does not fit the network: {name} is {theirs} there and {ours} here; give the weights of "
            "the same network, at the same dataset.image_size and dataset.channels."
        )
    model.load_state_dict(taken, strict=False)


def head_names(model: nn.Module) -> list[str]:
    """The names of the layers that make the logits: timm's classifier, else the last convolution or dense layer."""
    get_classifier: Any = getattr(model, "get_classifier", None)  # of timm
    if get_classifier is not None:
        found = get_classifier()
        heads = list(found) if isinstance(found, (tuple, list)) else [found]
    else:
        heads = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    return [name for name, module in model.named_modules() if any(module is head for head in heads)]
