"""A Slurm cluster of one node, in a folder of its own: munged, slurmctld, slurmd.

Slurm's clients look for /etc/slurm/slurm.conf, and the executor removes what could say otherwise
from the environment. So daemons and clients run in a mount namespace in which /etc/slurm is ours.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CPUS = 4  # told to Slurm, whatever the machine has
SECONDS_TO_START = 30

CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=300
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `inside` makes of a command one that sees it."""

    folder: Path
    namespace: int  # a process in it

    def inside(self, *command: str) -> list[str]:
        enter = ["nsenter", f"--target={self.namespace}", "--mount", f"--wd={os.getcwd()}"]
        return [*enter, *command]

    def ask(self, *command: str) -> str:
        """What a client of Slurm prints."""
        inside = self.inside(*command)
        return subprocess.run(inside, capture_output=True, text=True, check=False).stdout.strip()

    def jobs(self, state: str = "all") -> list[str]:
        """Ids of the jobs in a state (`running`, `pending`, ...)."""
        return self.ask("squeue", "--noheader", "--format=%i", f"--states={state}").split()

    def cancel(self) -> None:
        """Cancel all jobs, and wait until none is left."""
        self.ask("scancel", "--user=root")
        _wait(lambda: not self.jobs("pending,running,completing"), self.logs)

    def logs(self) -> str:
        """What the daemons have written, for a test that fails."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster; whatever happens, nothing of it runs afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with ExitStack() as started:
        started.callback(shutil.rmtree, folder, ignore_errors=True)
        _fill(folder)
        munge = folder / "run" / "munge.socket"
        started.enter_context(
            _daemon(
                "munged",
                "--foreground",
                f"--key-file={folder}/munge/munge.key",
                f"--socket={munge}",
                f"--pid-file={folder}/run/munged.pid",
                f"--log-file={folder}/log/munged.log",
                f"--seed-file={folder}/munge/munge.seed",
            )
        )
        _wait(munge.exists, "munged")
        bind = 'mount --bind "$0" /etc/slurm && exec sleep infinity'
        namespace = started.enter_context(
            _daemon("unshare", "--mount", "sh", "-c", bind, str(folder / "etc"))
        )
        made = Cluster(folder, namespace.pid)
        _wait(lambda: "ClusterName=lab" in made.ask("cat", "/etc/slurm/slurm.conf"), "unshare")
        started.enter_context(_daemon(*made.inside("slurmctld", "-D", "-c")))
        started.enter_context(_daemon(*made.inside("slurmd", "-D")))
        _wait(lambda: made.ask("sinfo", "--noheader", "--format=%T") == "idle", made.logs)
        # First of all, when it ends: jobs run under processes of their own, not slurmd's.
        started.callback(made.cancel)
        yield made


def _fill(folder: Path) -> None:
    """Folders, key and configuration. munged wants its socket where everybody may look."""
    folder.chmod(0o755)
    for name in ("munge", "run", "state", "spool", "log", "etc"):
        (folder / name).mkdir(mode=0o700 if name == "munge" else 0o755)
    key = folder / "munge" / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = CONF.format(host=socket.gethostname(), folder=folder, ports=_free_ports(2), cpus=CPUS)
    (folder / "etc" / "slurm.conf").write_text(conf)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        found = []
        for _ in range(count):
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(listener.getsockname()[1])
        return found


@contextmanager
def _daemon(*command: str) -> Iterator[subprocess.Popen]:
    """Run a program, which also ends if this process is killed."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(ready: Callable[[], bool], what: str | Callable[[], str]) -> None:
    for _ in range(SECONDS_TO_START * 10):
        if ready():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what if isinstance(what, str) else what()}")
