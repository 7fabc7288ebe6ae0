"""A project folder that a test may damage: two records, a report, a table, a claim, own images and a data cache."""

import shutil
import sys
from pathlib import Path

import pytest
from stopped_runs import whole_checkpoints

from rst.experiments import compose
from rst.experiments.report import claims_page
from rst.experiments.tables import claim_file, table_file
from rst.experiments.tables.expansion import load_table
from rst.experiments.training import train

from .answers import REPORT, TINY, run

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "data"))

from image_tree import make_own_images

TABLE = f"""title: Two schemes
draw: summary
seeds: 1
overrides: [{", ".join(TINY)}]
rows:
  SGD: [scheme=sgd]
  G-RST[70%]: [scheme=grst, schedule.p=0.7]
"""
CLAIMS = """seeds: {paper: 2, smoke: 2}
claims:
  grst-helps:
    section: "1"
    quote: better
    claim: G-RST has a lower test error than SGD.
    table: two
    gap: [SGD, "G-RST[70%]"]
    comparisons: [{a: "G-RST[70%]", b: SGD, expect: lower}]
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder before any damage: the runs of its table are done, and the report is written."""
    folder = tmp_path_factory.mktemp("finished")
    tables = folder / "configs" / "tables"
    tables.mkdir(parents=True)
    (tables / "two.yaml").write_text(TABLE)
    (folder / "configs" / "claims.yaml").write_text(CLAIMS)
    make_own_images(folder / "pets", images=5)
    cache = folder / "data" / "cache"
    cache.mkdir(parents=True)
    (cache / "cifar100.pt").write_bytes(b"in place of the cache of CIFAR-100")
    (folder / "notes.txt").write_text("a file of the user")
    (folder / "app").mkdir()
    (folder / "app" / "config.yaml").write_text("debug: true  # a file of the user, and not the config of a run")
    with pytest.MonkeyPatch.context() as patch:
        _work_in(folder, patch)
        with whole_checkpoints():
            for planned in load_table("two").runs:
                train(planned.spec, show_progress=False)
        assert run(REPORT, ["two", "claims", "--page"]).code == 0
    assert {path.name for path in (folder / "results").iterdir()} >= {"runs", "tables", "figures", "report.html"}
    assert (folder / "docs" / "claims.md").exists()
    return folder


def _work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setattr(table_file, "TABLES", folder / "configs" / "tables")
    patch.setattr(claim_file, "FILE", folder / "configs" / "claims.yaml")
    for module in (compose, claims_page):
        patch.setattr(module, "PROJECT", folder)
    patch.setenv("HYDRA_FULL_ERROR", "1")  # train.py sets this, and it would stay set after the test.
    patch.delenv("RST_DATA", raising=False)
    for proxy in ("http_proxy", "https_proxy"):
        patch.setenv(proxy, "http://127.0.0.1:9")  # Nothing answers there, as on a machine without a network.
    for name in ("argv", "stdin"):
        patch.setattr(sys, name, getattr(sys, name))


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, which is also the working folder of the test."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    _work_in(folder, monkeypatch)
    return folder
