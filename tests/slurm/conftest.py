"""A real Slurm cluster of one node, this machine, for the tests of this folder: ``make test-slurm``, as root.

It needs Debian's packages slurm-wlm and munge.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/slurmd
StateSaveLocation={folder}/state
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=2 MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="session", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm's daemons, which run for the whole session. Slurm's commands find them by SLURM_CONF."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=path) is None]
    if lacking:
        pytest.fail(f"there is no {', '.join(lacking)} here: apt-get install slurm-wlm munge.")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("munge", "state", "slurmd"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, cpus=os.cpu_count(), ports=free_ports(2)))
    os.environ |= {"SLURM_CONF": str(conf), "PATH": path}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge/{name}" for option, name in files.items()]
    daemons = [
        start(["munged", "--foreground", "--force", *munge]),
        start(["slurmctld", "-D", "-L", str(folder / "slurmctld.log")]),
        start(["slurmd", "-D", "-L", str(folder / "slurmd.log")]),
    ]
    try:
        until(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T"), seconds=60)
        yield
    finally:
        slurm("scancel", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a daemon."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that no process uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def slurm(*command: str) -> str:
    """The output of one of Slurm's commands."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition holds; the test fails if it does not hold within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} s: {slurm('squeue')}{slurm('sinfo')}")
        time.sleep(0.3)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the records of a test are."""
    return tmp_path / "runs"
