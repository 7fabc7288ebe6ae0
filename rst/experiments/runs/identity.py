"""The id of a run: a prefix for people, and a hash of what determines its result, in the words of the spec."""

import hashlib
import json
import re
from functools import reduce
from typing import Any

from rst.experiments.spec import RunSpec
from rst.schedules import constant

ADDED_LATER: dict[str, Any] = {}
"""Keys of `identity` that older records lack, each with the value that those records stand for. A key that has this
value is left out of the hash, so that the older records keep their ids."""

SPEED_ALONE = {"fused", "foreach", "capturable"}
"""Options of optimizers that change how fast a step is, and its result by rounding alone."""


def identity(spec: RunSpec) -> dict[str, Any]:
    """What determines the result of a run.

    p(t) and c stand for schedule and scheme, with "auto" resolved, so that runs that do the same have one id. At p = 0
    ρ, c and the variant have no effect, and all tables share their SGD baselines. Left out are keys that the data set
    or another key makes ineffective, and all that changes only where, how fast or how visibly a run is computed.
    """
    data, recipe = spec.dataset, spec.recipe
    shape = {"num_classes", "in_channels", "image_size"}  # of the data set, which has them too
    weights = spec.model.pretrained_digest or spec.model.pretrained is True  # wherever the file is
    return {
        "network": spec.network,
        "model": {key: value for key, value in spec.model.options.items() if key not in shape}
        | ({"pretrained": weights} if weights else {}),
        "dataset": data.model_dump(exclude={"source", "root"}),
        "images": "digits" if data.source == "digits" else data.name,
        "augmentation": _augmentation(spec),
        "optimizer": {
            key: value for key, value in spec.optimizer.model_dump(exclude_unset=True).items() if key not in SPEED_ALONE
        },
        "recipe": recipe.model_dump(exclude={"rho"}) | {"perturbation_batch": spec.perturbation_batch},
        "method": _method(spec),
        "seed": spec.seed,
        "precision": {"autocast": spec.autocast, "tf32": spec.tf32},
    }


def _augmentation(spec: RunSpec) -> dict[str, Any]:
    own = spec.augmentation.model_dump()
    if spec.dataset.name in ("imagenet", "folder") and not spec.stands_in:
        del own["crop_padding"]  # crops of image files are resized, not padded
    if not spec.augmentation.cutout:
        del own["cutout_per_image"]
    return own


def _method(spec: RunSpec) -> dict[str, Any]:
    mean = spec.mean_p
    p = constant(mean) if mean is not None and mean in (0, 1) else spec.p
    if mean == 0:
        return {"p": p.name}
    c = spec.gamma_ratio
    return {
        "p": p.name,
        "gamma_ratio": float(f"{c:.12g}"),
        "normalise_clean": spec.scheme.normalise_clean and c != 1,
        "variant": spec.variant.model_dump(exclude_unset=True),
        **({"devices": spec.devices} if spec.depends_on_devices else {}),
    }


def run_id(spec: RunSpec) -> str:
    """``<data set>-<network>-n<images>-e<epochs>-<p(t)>[-<variant>][-c<c>]-s<seed>-<ten digits of the hash>``.

    The network of a library is two words, such as ``timm-convnext_tiny``. ``digits_as_cifar10`` says that the embedded
    digits take the place of CIFAR-10's images.
    """
    what = identity(spec)
    for key, default in ADDED_LATER.items():
        *nodes, leaf = key.split(".")
        owner = reduce(lambda node, name: node.get(name, {}), nodes, what)
        if leaf in owner and owner[leaf] == default:
            del owner[leaf]
    digest = hashlib.sha256(json.dumps(_canonical(what), sort_keys=True).encode()).hexdigest()[:10]
    data, method = spec.dataset, what["method"]
    words = [f"digits_as_{data.name}" if spec.stands_in else data.name, spec.network]
    words += [re.sub(r"[^\w.]", "_", spec.model.name)] * bool(spec.model.name)
    words += [f"n{data.train_images - data.validation}", f"e{spec.recipe.epochs}"]
    words += re.findall(r"[\w.]+", method["p"].replace("=", ""))
    if "variant" in method:
        words += [method["variant"]["name"]] * (method["variant"]["name"] != "sam") + [f"c{method['gamma_ratio']:.4g}"]
    return "-".join([*words, f"s{spec.seed}", digest])


def _canonical(value: Any) -> Any:
    """The value with equal numbers written alike (1 and 1.0 are one value), and tuples as lists."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
