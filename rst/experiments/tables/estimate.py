"""What runs will cost: passes over a batch, and hours where the time of a pass is known."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import MappingProxyType

from rst.experiments.compose import CONFIGS, compose
from rst.experiments.devices import emulates_bfloat16
from rst.experiments.errors import InputError
from rst.experiments.runs.record import ENDED, STATUSES, Record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import PlannedRun, Table, runs_of

FEW = 60
"""Up to this many runs, a plan has one line for each run; above, one line for each cell."""

PRINTED = (
    ("table03", ["dataset=cifar10"], 4),
    ("table04", ["dataset=imagenet"], 4),
    ("table14", ["dataset=cifar10", "recipe=single_gpu"], 1),
)
"""Tables of the paper that print training times in minutes, the overrides of their runs, and how many A100 GPUs trained
a run."""

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
"""The paper's spelling of our networks."""


@dataclass(frozen=True)
class Speed:
    """The time of a pass over a batch."""

    seconds: float
    """On one device; of several, the sum over all of them."""
    device: str
    source: str
    """Where the time is from, in words."""


def kind(spec: RunSpec) -> str:
    """A digest of what the time of a pass depends on: runs of one kind are taken to be equally fast."""
    model = {key: value for key, value in spec.model.options.items() if key != "num_classes"}
    what = [spec.network, model, spec.dataset.image_size, spec.recipe.batch_size, spec.perturbation_batch, spec.scale]
    flags = [spec.autocast, spec.tf32, spec.channels_last, spec.compile, spec.cuda_graphs, spec.deterministic]
    return json.dumps([*what, *flags], sort_keys=True)


def speed(spec: RunSpec) -> Speed | None:
    """The time of a pass in finished runs of this kind; without any, that of the paper; None where neither is known."""
    return _measured(spec) or _printed(spec)


def _measured(spec: RunSpec) -> Speed | None:
    """The mean over the finished runs of this kind on one device: the device that has trained most of them."""
    seconds = defaultdict(list)
    for summary in Path(spec.paths.runs).glob(f"*-{spec.network}-*/summary.json"):
        record = Record(summary.parent)
        try:
            result, own, environment = record.summary, record.spec, record.environment
        except InputError:  # a damaged record, or one of an older version
            continue
        if kind(own) == kind(spec):
            pass_seconds = result["train_seconds"] / result["propagations"]
            seconds[environment["device"]].append(pass_seconds * environment.get("devices", 1))
    if not seconds:
        return None
    device = max(seconds, key=lambda name: len(seconds[name]))
    return Speed(mean(seconds[device]), device, f"{len(seconds[device])} runs that are done, on {device}")


def _printed(spec: RunSpec) -> Speed | None:
    """From the training time that the paper prints for the base optimizer, SGD or Adam, of a run of this kind."""
    if spec.scale != "paper":
        return None
    for table, overrides, gpus in PRINTED:
        minutes = next(_minutes(table, spec.network, gpus), None)
        if minutes is not None:
            theirs = compose([f"model={spec.network}", *overrides])
            if kind(theirs) == kind(spec):
                source = f"the paper's {table}: {minutes:g} minutes on {gpus} A100"
                return Speed(60 * gpus * minutes / theirs.total_steps, "A100", source)
    return None


def _minutes(table: str, network: str, gpus: int) -> Iterator[float]:
    """The training times of the network in a table of the paper, for runs on one GPU or on several."""
    with (CONFIGS.parent / "results" / "paper" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            on_one = "one A100" in line["source_note"]
            if line["model"] == NETWORKS.get(network) and line["metric"] == "time_min" and on_one == (gpus == 1):
                yield float(line["mean"])


Committed = Mapping[str, Mapping[str, str]]
"""What came out of runs elsewhere, by id: lines of a ``records.csv``."""
NOTHING: Committed = MappingProxyType({})


def _speeds(runs: Sequence[PlannedRun], committed: Committed) -> dict[str, Speed | None]:
    """The time of a pass of each `kind` of these runs; where `speed` knows none, by their committed results."""
    of_kind: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        of_kind[kind(run.spec)].append(run)
    return {key: speed(own[0].spec) or _committed_speed(own, committed) for key, own in of_kind.items()}


def _committed_speed(runs: Sequence[PlannedRun], committed: Committed) -> Speed | None:
    lines = [committed[run.record.id] for run in runs if run.record.id in committed]
    timed = [line for line in lines if line["train_seconds"] and line["propagations"] and line["device"]]
    if not timed:
        return None
    seconds = mean(float(line["train_seconds"]) / float(line["propagations"]) for line in timed)
    device = Counter(line["device"] for line in timed).most_common(1)[0][0]
    return Speed(seconds, device, f"{len(timed)} committed results, on {device}")


# ---------------------------------------------------------------------------------------------- before a sweep starts

DAY = 24.0
"""A sweep that takes more than so many hours starts only if it is told to."""


@dataclass(frozen=True)
class Forecast:
    """What the runs that are left will take here, as far as it is known."""

    sentence: str
    days: bool
    """Whether it takes more than `DAY` hours, or trains full-size networks without a GPU: it starts only with --yes."""


def forecast(runs: Sequence[PlannedRun], workers: int, gpu_here: bool, committed: Committed = NOTHING) -> Forecast:
    """The time of the runs that are left, divided over so many workers."""
    left = [run for run in runs if run.record.status not in ENDED]
    speeds = _speeds(left, committed)
    here: dict[str, float] = defaultdict(float)
    elsewhere: dict[str, float] = defaultdict(float)
    unknown = []
    for run in left:
        found = speeds[kind(run.spec)]
        if found is None:
            unknown.append(run)
            continue
        hours = max(0.0, run.spec.expected_passes - run.record.propagations) * found.seconds / 3600
        if found.device == "cpu" or gpu_here:
            here[found.device] += hours / run.spec.devices / workers
        else:
            elsewhere[found.device] += hours
    total = sum(here.values())
    time = f"{total:,.2g} hours" if total >= 1 else f"{60 * total:.2g} minutes"
    parts = [f"about {time} by {workers} workers, by the times of {', '.join(here)}"] * bool(here)
    parts += [f"about {hours:,.3g} GPU-hours on {device}, without a GPU here" for device, hours in elsewhere.items()]
    parts += [f"an unknown time for {len(unknown)} of them"] * bool(unknown)
    full_size = any(run.spec.scale == "paper" and run.spec.dataset.name != "digits" for run in unknown)
    slower = _slower(run.spec for run in left)
    sentence = f"{len(left)} runs to train: {', '.join(parts)}{slower}." if left else "0 runs to train."
    return Forecast(sentence, total > DAY or bool(elsewhere) or (full_size and not gpu_here))


def _slower(specs: Iterable[RunSpec]) -> str:
    """What to add to a time where runs compute in bfloat16 on a processor without instructions for it."""
    if any(spec.autocast == "bfloat16" and emulates_bfloat16(spec.device) for spec in specs):
        return "; this processor has no bfloat16 instructions and takes longer for the same runs than one that has"
    return ""


# ---------------------------------------------------------------------------------------------------------- a dry run

Costs = dict[str, tuple[str, float]]
"""Status and expected passes of each run, by its id."""


def plan(tables: Sequence[Table], committed: Committed = NOTHING) -> str:
    """What a sweep would train: the status and the passes of every run, and the hours that are left."""
    runs = runs_of(tables)
    costs = {run.record.id: (run.record.status, run.spec.expected_passes) for run in runs}
    parts = [_listing(table, costs, len(runs) <= FEW) for table in tables]
    return "\n\n".join([*parts, _totals(runs, costs, committed)])


def _listing(table: Table, costs: Costs, one_by_one: bool) -> str:
    lines: list[tuple[str, ...]] = []
    for cell in table.cells:
        ids = [run.record.id for run in cell.runs]
        row = " ".join(filter(None, (cell.group, cell.network, cell.row, cell.dataset)))
        if one_by_one:
            lines += [(costs[name][0], f"{costs[name][1]:,.0f}", row, name) for name in ids]
        elif ids:
            statuses = Counter(costs[name][0] for name in ids)
            others = [f"{statuses[status]} {status}" for status in STATUSES[1:-1] if statuses[status]]
            status = ", ".join([f"{statuses['done']}/{len(ids)} done", *others])
            passes = sum(costs[name][1] for name in ids)
            lines.append((status, f"{passes:,.0f}", row))
    head = f"{table.name}: {table.title.removesuffix('.')}: {len(table.runs)} runs"
    columns = {"status": "left", "passes": "right", "row": "left"} | ({"id": "left"} if one_by_one else {})
    return "\n".join([head, *_aligned(columns, lines)])


def _totals(runs: Sequence[PlannedRun], costs: Costs, committed: Committed) -> str:
    left: dict[str, float] = defaultdict(float)
    examples = {}
    for run in runs:
        status, passes = costs[run.record.id]
        if status not in ENDED:
            left[kind(run.spec)] += max(0.0, passes - run.record.propagations)
            examples[kind(run.spec)] = run.spec
    speeds = _speeds([run for run in runs if costs[run.record.id][0] not in ENDED], committed)
    hours = {key: left[key] * found.seconds / 3600 for key, found in speeds.items() if found}
    lines = []
    for key, spec in examples.items():
        network = f"{spec.network}, {spec.dataset.image_size} pixels, batches of {spec.recipe.batch_size}"
        found, rest = speeds[key], f"{left[key]:,.0f}"
        if found:
            lines.append((network, rest, f"{found.seconds:.4f}", f"{hours[key]:,.2f}", found.source))
        else:
            lines.append((network, rest, "", "", f"unknown: no run of {spec.network} has been timed"))
    unit = "hours" if all(found.device == "cpu" for found in speeds.values() if found) else "GPU-hours"
    unknown = sum(left[key] for key in speeds.keys() - hours.keys())
    counts = Counter(status for status, _ in costs.values())
    columns = {"network": "left", "passes left": "right", "s a pass": "right", unit: "right", "from": "left"}
    head = f"In all {len(runs)} runs: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES)
    total = f"{sum(left.values()):,.0f} passes left"
    if unknown and not hours:
        total += ", which take an unknown time"
    else:
        total += f": {sum(hours.values()):,.2f} {unit} of training, without evaluation"
        total += f", and {unknown:,.0f} passes of unknown time" if unknown else ""
    return "\n".join([head, *_aligned(columns, lines), total + _slower(examples.values())])


def _aligned(columns: dict[str, str], lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines as a table in plain text; ``columns`` has the side, left or right, that each column is aligned to."""
    if not lines:
        return []
    from tabulate import tabulate  # not needed by those who train

    text = tabulate(lines, list(columns), tablefmt="plain", disable_numparse=True, colalign=list(columns.values()))
    return text.splitlines()
