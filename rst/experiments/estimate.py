"""What runs will cost: their passes, and the time of a pass where one has been measured."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from rst.experiments.config import CONFIGS, InputError, load_config, schedule_of, total_steps, variant
from rst.experiments.record import STATUSES, Record
from rst.experiments.sweep import Job, Table, jobs_of

FEW = 60
"""So many runs are listed one by one; of more, each cell is a line."""

PRINTED = (
    ("table03", ["dataset=cifar10"], 4),
    ("table04", ["dataset=imagenet"], 4),
    ("table14", ["dataset=cifar10", "recipe=single_gpu"], 1),
)
"""Tables of the paper with the minutes that training takes; their runs; how many A100 they took."""

NETWORKS = {
    "vgg16_bn": "VGG16BN",
    "resnet18": "ResNet18",
    "wrn28_10": "WRN28-10",
    "pyramidnet164": "Pyramid164",
    "vit_ti": "ViT-Ti16",
    "vit_s": "ViT-S16",
    "vit_b": "ViT-B16",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
}
"""The paper's names for them."""


@dataclass(frozen=True)
class Speed:
    """How long a network takes for a pass over a batch, in seconds of one device, and how that is known."""

    seconds: float
    device: str
    source: str


def expected_passes(cfg: DictConfig) -> float:
    """T (1 + Δη): the work of the whole run, in passes of SGD."""
    steps = total_steps(cfg)
    return steps * (1 + schedule_of(cfg).mean(steps) * variant(cfg).extra_passes)


def kind(cfg: DictConfig) -> str:
    """What the time of a pass depends on; runs alike in it are taken to be equally fast."""
    model = {key: value for key, value in cfg.model.items() if key != "num_classes"}
    size, batch = cfg.dataset.image_size, cfg.recipe.batch_size
    return json.dumps([cfg.network, model, size, batch, cfg.scale], sort_keys=True, default=OmegaConf.to_container)


def speed(cfg: DictConfig) -> Speed | None:
    """The measured speed of such runs; else, at full scale, the paper's; None where there is neither."""
    return _measured(cfg) or _printed(cfg)


def _measured(cfg: DictConfig) -> Speed | None:
    """The mean over the runs of this kind that are done, of the device that did most of them."""
    seconds = defaultdict(list)
    for summary in Path(cfg.paths.runs).glob(f"*-{cfg.network}-*/summary.json"):
        record = Record(summary.parent)
        try:
            result, config, environment = record.summary, record.config, record.environment
        except InputError:  # of an older version, or damaged
            continue
        if kind(config) == kind(cfg):
            seconds[environment["device"]].append(result["train_seconds"] / result["propagations"])
    if not seconds:
        return None
    device = max(seconds, key=lambda name: len(seconds[name]))
    return Speed(mean(seconds[device]), device, f"{len(seconds[device])} runs that are done, on {device}")


def _printed(cfg: DictConfig) -> Speed | None:
    """From the time of SGD, or of a ViT's Adam, that the paper prints for this kind of run."""
    if cfg.scale == "paper":
        for name, overrides, gpus in PRINTED:
            lines = pd.read_csv(CONFIGS.parent / "results" / "paper" / f"{name}.csv")
            lines = lines[(lines["model"] == NETWORKS.get(cfg.network)) & (lines["metric"] == "time_min")]
            lines = lines[lines["source_note"].str.contains("one A100") == (gpus == 1)]
            if len(lines):
                theirs, minutes = load_config([f"model={cfg.network}", *overrides]), lines["mean"].iloc[0]
                if kind(theirs) == kind(cfg):
                    source = f"the paper's {name}: {minutes:g} minutes on {gpus} A100"
                    return Speed(60 * gpus * minutes / total_steps(theirs), "A100", source)
    return None


# --------------------------------------------------------------------------------------------------------- a dry run


def plan(tables: Sequence[Table]) -> str:
    """Every run with its status and passes, table by table, and what all of them together still cost."""
    jobs = jobs_of(tables)
    runs = {job.record.id: (job.record.status, expected_passes(job.cfg)) for job in jobs}
    parts = [_listing(table, runs, len(jobs) <= FEW) for table in tables]
    return "\n\n".join([*parts, _totals(jobs, runs)])


Runs = dict[str, tuple[str, float]]
"""Status and passes of each id."""


def _listing(table: Table, runs: Runs, one_by_one: bool) -> str:
    lines = []
    for cell in table.cells:
        ids = [job.record.id for job in cell.jobs]
        row = " ".join(filter(None, (cell.group, cell.block, cell.row, cell.column)))
        if one_by_one:
            lines += [(runs[name][0], f"{runs[name][1]:,.0f}", row, name) for name in ids]
        elif ids:
            statuses = Counter(runs[name][0] for name in ids)
            others = [f"{statuses[status]} {status}" for status in STATUSES[1:-1] if statuses[status]]
            status = ", ".join([f"{statuses['done']}/{len(ids)} done", *others])
            passes = sum(runs[name][1] for name in ids)
            lines.append((status, f"{passes:,.0f}", row, ids[0].rsplit("-", 2)[0]))
    head = f"{table.name}: {table.title}: {len(table.jobs)} runs"
    return "\n".join([head, *_aligned({"status": "left", "passes": "right", "row": "left", "id": "left"}, lines)])


def _totals(jobs: Sequence[Job], runs: Runs) -> str:
    left: dict[str, float] = defaultdict(float)
    examples = {}
    for job in jobs:
        status, passes = runs[job.record.id]
        if status != "done":
            left[kind(job.cfg)] += max(0.0, passes - job.record.propagations)
            examples[kind(job.cfg)] = job.cfg
    speeds = {key: speed(cfg) for key, cfg in examples.items()}
    hours = {key: left[key] * found.seconds / 3600 for key, found in speeds.items() if found}
    lines = []
    for key, cfg in examples.items():
        network = f"{cfg.network}, {cfg.dataset.image_size} pixels, batches of {cfg.recipe.batch_size}"
        found, rest = speeds[key], f"{left[key]:,.0f}"
        if found:
            lines.append((network, rest, f"{found.seconds:.4f}", f"{hours[key]:,.2f}", found.source))
        else:
            lines.append((network, rest, "", "", f"unknown: no run of {cfg.network} has been timed"))
    unit = "hours" if all(found.device == "cpu" for found in speeds.values() if found) else "GPU-hours"
    unknown = sum(left[key] for key in speeds.keys() - hours.keys())
    counts = Counter(status for status, _ in runs.values())
    columns = {"network": "left", "passes left": "right", "s a pass": "right", unit: "right", "from": "left"}
    head = f"In all {len(jobs)} runs: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES)
    total = f"{sum(left.values()):,.0f} passes left: {sum(hours.values()):,.2f} {unit} of training, without evaluation"
    rest = f", and {unknown:,.0f} passes of unknown time" if unknown else ""
    return "\n".join([head, *_aligned(columns, lines), total + rest])


def _aligned(columns: dict[str, str], lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines under the names of the columns, each to its side."""
    if not lines:
        return []
    frame = pd.DataFrame(lines, columns=list(columns))
    sides = list(columns.values())
    text: str = frame.to_markdown(index=False, tablefmt="plain", disable_numparse=True, colalign=sides)
    return text.splitlines()
