"""A real Slurm on this machine: munge, MariaDB, slurmdbd, slurmctld and two nodes.

    python tests/cluster/slurm.py start | stop

Node c1 is in the partition cpu, node g1 in the partition gpu, and both are in the partition both.
c1 has one and g1 two pretend GPUs, which are copies of /dev/null. Needs Debian or Ubuntu, root, and
either Slurm's packages or apt.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PACKAGES = ["slurm-wlm", "slurmdbd", "munge", "mariadb-server"]
PROGRAMS = ["slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"]
CONF = Path("/etc/slurm")  # a job step forgets SLURM_CONF, so it has to be here
STATE = Path("/var/lib/rerg-test-cluster")
LOGS = STATE / "logs"
MARK = "# The test cluster of rerg."
NODES = {"c1": 17001, "g1": 17002}
CPUS = 8  # pretended, so that jobs run side by side
MEMORY = 16000  # pretended, MB


class Unavailable(Exception):
    """Why no Slurm can run here."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180) -> object:
    """The first truthy value of a condition, polled; TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {seconds:g} s")


def output(*command: str) -> str:
    """Standard output of a command; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def works(*command: str) -> bool:
    """Whether a command ends with status 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def alive(pid_file: Path) -> int:
    """The process of a pid file if it runs, else 0."""
    try:
        pid = int(pid_file.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else pid


def install() -> None:
    """Install what is missing from Debian's packages; raises Unavailable where that can't be."""
    if os.geteuid() != 0:
        raise Unavailable("a test cluster needs root")
    conf = CONF / "slurm.conf"
    if conf.exists() and MARK not in conf.read_text():
        raise Unavailable(f"{conf} belongs to another cluster")
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    os.environ["PATH"] = path
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if not shutil.which("apt-get"):
        raise Unavailable("Slurm is not installed, and there is no apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES],
    )
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"{' '.join(command[:2])} failed: {reason}")


def configure() -> None:
    """Write the configuration of the cluster, its key and its pretend GPUs."""
    host = socket.gethostname().split(".")[0]
    if not output("getent", "hosts", host):
        with Path("/etc/hosts").open("a") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")
    for folder in (CONF, LOGS, STATE / "controller", *(STATE / node for node in NODES)):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        device = STATE / f"gpu{i}"
        if not device.exists():
            os.mknod(device, 0o020666, os.makedev(1, 3))
    common = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY}"
    (CONF / "slurm.conf").write_text(
        f"""{MARK}
ClusterName=rerg
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
# A requeued job waits for the life of its credential.
AuthInfo=cred_expire=5
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmctldLogFile={LOGS}/slurmctld.log
SlurmdPidFile={STATE}/%n.pid
SlurmdLogFile={LOGS}/%n.log
SlurmdSpoolDir={STATE}/%n
StateSaveLocation={STATE}/controller
# Two nodes on one machine, with more processors than it has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,bf_interval=2
GresTypes=gpu
# Short, so that a dead node is seen within a test; a site has minutes.
SlurmdTimeout=8
KillWait=10
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobCompType=jobcomp/none
NodeName=c1 Port={NODES["c1"]} {common} Gres=gpu:1
NodeName=g1 Port={NODES["g1"]} {common} Gres=gpu:2
PartitionName=cpu Nodes=c1 Default=YES MaxTime=INFINITE
PartitionName=gpu Nodes=g1 MaxTime=INFINITE
PartitionName=both Nodes=c1,g1 MaxTime=INFINITE
"""
    )
    (CONF / "gres.conf").write_text(
        f"{MARK}\nNodeName=g1 Name=gpu File={STATE}/gpu[0-1]\n"
        f"NodeName=c1 Name=gpu File={STATE}/gpu2\n"
    )
    accounting = CONF / "slurmdbd.conf"
    accounting.touch(mode=0o600)
    accounting.write_text(
        f"""{MARK}
DbdHost={host}
DbdAddr=127.0.0.1
SlurmUser=root
PidFile={STATE}/slurmdbd.pid
LogFile={LOGS}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
"""
    )


def _munge() -> None:
    key, run = Path("/etc/munge/munge.key"), Path("/run/munge")
    if not key.exists():
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge", "munge")
    run.mkdir(mode=0o755, exist_ok=True)
    for folder in (run, Path("/var/log/munge"), Path("/var/lib/munge")):
        shutil.chown(folder, "munge", "munge")
    if not works("munge", "-n"):
        subprocess.run(["runuser", "-u", "munge", "--", shutil.which("munged")], check=True)
    wait_for(lambda: works("munge", "-n"), "munged")


def _database() -> None:
    data, pid_file = STATE / "mariadb", STATE / "mariadb.pid"
    run = Path("/run/mysqld")  # where its clients, slurmdbd among them, look for the socket
    socket_of = f"--socket={run}/mysqld.sock"
    sql = ["mariadb", socket_of]
    if not alive(pid_file):
        if works(*sql, "-e", "select 1"):
            raise Unavailable(f"another MariaDB runs on {run}/mysqld.sock")
        for folder in (run, data):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, "mysql", "mysql")
        options = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
        if not (data / "mysql").exists():
            create = ["mariadb-install-db", *options, "--skip-test-db"]
            create.append("--auth-root-authentication-method=socket")
            subprocess.run(create, check=True, capture_output=True)
        log = (LOGS / "mariadb.log").open("w")
        server = subprocess.Popen(
            [
                shutil.which("mariadbd"),
                *options,
                f"--socket={run}/mysqld.sock",
                "--skip-networking",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        pid_file.write_text(str(server.pid))
    wait_for(lambda: works(*sql, "-e", "select 1"), "MariaDB")
    statements = (
        "create database if not exists slurm_acct_db;"
        "create user if not exists slurm@localhost identified by 'slurm';"
        "grant all on slurm_acct_db.* to slurm@localhost"
    )
    subprocess.run([*sql, "-e", statements], check=True)


def _accounting() -> None:
    if not alive(STATE / "slurmdbd.pid"):
        subprocess.run(["slurmdbd"], check=True)
    wait_for(lambda: works("sacctmgr", "-n", "show", "cluster"), "slurmdbd")
    for what in (["cluster", "rerg"], ["account", "tests"], ["user", "root", "account=tests"]):
        subprocess.run(["sacctmgr", "-i", "add", *what], check=False, capture_output=True)
    if "tests" not in output("sacctmgr", "-nP", "show", "assoc", "user=root", "format=account"):
        raise RuntimeError(f"no account in slurmdbd; see {LOGS}/slurmdbd.log")


def start_controller() -> None:
    """Start slurmctld, and wait until it answers."""
    if not alive(STATE / "slurmctld.pid"):
        subprocess.run(["slurmctld"], check=True)
    wait_for(lambda: works("scontrol", "ping") and output("squeue", "-h") is not None, "slurmctld")


def stop_controller() -> None:
    """Stop slurmctld; jobs go on."""
    _stop(STATE / "slurmctld.pid")


def start_node(node: str) -> None:
    """Start the slurmd of a node, and wait until the controller can use it."""
    if not alive(STATE / f"{node}.pid"):
        subprocess.run(["slurmd", "-N", node], check=True)
    usable = ("idle", "mixed", "allocated", "completing")
    wait_for(lambda: output("sinfo", "-hn", node, "-o", "%T") in usable, f"node {node}")


def processes(variable: str, value: str) -> Iterator[int]:
    """Ids of the processes that have a variable in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{variable}={value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


@contextmanager
def paused(job: str, script: str) -> Iterator[None]:
    """Stop the processes of a job that run a script, and let them go on in the end."""
    pids = [
        pid
        for pid in processes("SLURM_JOB_ID", job)
        if script in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kill_node(node: str) -> None:
    """Kill a node as a power cut does: slurmd, and everything that runs on it, by SIGKILL."""
    doomed = {alive(STATE / f"{node}.pid")} - {0}
    for pid in processes("SLURMD_NODENAME", node):
        doomed.add(pid)
        with suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
                doomed.add(parent)
    for pid in doomed:
        with suppress(ProcessLookupError):  # it may have ended with one killed before it
            os.kill(pid, signal.SIGKILL)


def start() -> None:
    """Install, configure and start the cluster; raises Unavailable where that can't be."""
    install()
    try:
        configure()
        _munge()
        _database()
        _accounting()
        start_controller()
        for node in NODES:
            start_node(node)
    except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
        stop()
        raise Unavailable(f"Slurm is installed but does not start: {error}") from error
    except BaseException:
        stop()
        raise


def _stop(pid_file: Path) -> None:
    if pid := alive(pid_file):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid_file), f"end of {pid_file.stem}")


def stop() -> None:
    """Cancel all jobs, stop the cluster and forget it; munged and the packages stay."""
    conf = CONF / "slurm.conf"
    if not conf.exists() or MARK not in conf.read_text():
        return
    if works("scontrol", "ping"):
        subprocess.run(["scancel", "--user=root"], check=False)
        wait_for(lambda: not output("squeue", "-h"), "end of all jobs")
    for name in (*NODES, "slurmctld", "slurmdbd", "mariadb"):
        _stop(STATE / f"{name}.pid")
    shutil.rmtree(STATE, ignore_errors=True)
    # With it, every start of Snakemake would wait 10 s for the controller.
    for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
        (CONF / name).unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        {"start": start, "stop": stop}[sys.argv[1]]()
    except Unavailable as reason:
        sys.exit(str(reason))
