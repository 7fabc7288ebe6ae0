"""The id of a run: what determines its result, hashed, after a prefix that can be read."""

import hashlib
import json
import re
from functools import reduce
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rst.experiments.config import gamma_ratio, schedule_of, total_steps
from rst.schedules import constant

ADDED_LATER: dict[str, Any] = {}
"""Keys of `identity` that older records lack, with the default that those had: left out of the hash where equal to
it, so that the records keep their ids."""


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What determines the result of a run: not the names of schemes, not the device, paths, speed or logging.

    p(t) and c stand for schedule and scheme, with "auto" resolved. At p = 0 nothing of the perturbation matters, so
    that all tables share their SGD baselines.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    data, recipe = plain["dataset"], plain["recipe"]
    schedule = schedule_of(cfg)
    mean = schedule.mean(total_steps(cfg))
    method: dict[str, Any] = {"p": (constant(mean) if mean in (0, 1) else schedule).name}
    if mean > 0:
        c = gamma_ratio(cfg)
        method |= {"gamma_ratio": float(f"{c:.12g}"), "variant": plain["variant"]}
        method["normalise_clean"] = cfg.scheme.normalise_clean and c != 1
    return {
        "network": cfg.network,
        "model": plain["model"],
        "dataset": {key: value for key, value in data.items() if key not in ("root", "source")},
        "images": "digits" if data["source"] == "digits" else data["name"],
        "augmentation": plain["augmentation"],
        "optimizer": plain["optimizer"],
        "recipe": {key: value for key, value in recipe.items() if key != "rho"},
        "method": method,
        "seed": cfg.seed,
        "autocast": cfg.autocast,
    }


def run_id(cfg: DictConfig) -> str:
    """A readable prefix, and ten digits of the hash of `identity`."""
    what = identity(cfg)
    for key, default in ADDED_LATER.items():
        *nodes, leaf = key.split(".")
        owner = reduce(lambda node, name: node.get(name, {}), nodes, what)
        if leaf in owner and owner[leaf] == default:
            del owner[leaf]
    text = json.dumps(_canonical(what), sort_keys=True)
    method = what["method"]
    words = [cfg.dataset.name, cfg.network, *re.findall(r"[\w.]+", method["p"].replace("=", ""))]
    if "variant" in method:
        words += [method["variant"]["name"]] * (method["variant"]["name"] != "sam") + [f"c{method['gamma_ratio']:.4g}"]
    return "-".join([*words, f"s{cfg.seed}", hashlib.sha256(text.encode()).hexdigest()[:10]])


def _canonical(value: Any) -> Any:
    """Equal numbers written alike: 1 and 1.0 are one value."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
