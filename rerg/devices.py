"""What a job computes on: its threads, which of a machine's GPUs are its own, and its memory."""

import ctypes
import fcntl
import logging
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from rerg.config import InputError

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks for a free GPU
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
_locks: list[int] = []  # open for the life of the process: the kernel frees them however it ends


def set_up_cpu(threads: int) -> None:
    """Compute on so many threads, with memory that the process keeps when it is freed.

    glibc's malloc gives large blocks back to the system, which clears their pages anew for the next
    layer: a fifth of the time of a small UNet. Other C libraries stay as they are.
    """
    import torch  # here, as claiming has no use for its seconds

    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def visible() -> dict[str, str]:
    """GPUs that this process may use: their entry in CUDA_VISIBLE_DEVICES, and their UUID.

    Raises InputError where there is none.
    """
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise InputError(f"device is cuda, but no GPU is found: {error}") from None
    entries = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(listed)))))
    found = {}
    for entry in filter(None, entries.split(",")):
        known = entry.isdecimal() and int(entry) < len(listed)
        found[entry] = listed[int(entry)] if known else entry
    if not found:
        raise InputError("device is cuda, but CUDA_VISIBLE_DEVICES names no GPU")
    return found


def claim(device: str, count: int = 1) -> None:
    """Make `count` GPUs this process's own until it ends, and see no others; waits for free ones.

    A scheduler gives a job its GPUs. Snakemake alone only counts them (`--resources gpu=N`), so
    jobs side by side agree by a lock per GPU. Call it before CUDA is initialised.
    Raises InputError where fewer GPUs are visible than wanted. Does nothing for the device cpu.
    """
    if device == "cpu":
        return
    gpus = visible()
    if len(gpus) < count:
        raise InputError(f"training.processes is {count}, but the job sees {len(gpus)} GPUs")
    folder = Path(tempfile.gettempdir()) / f"rerg-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    waited = False
    while True:
        held: dict[str, int] = {}
        for entry, uuid in gpus.items():
            lock = os.open(folder / uuid, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            held[entry] = lock
            if len(held) == count:
                _locks.extend(held.values())
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
                log.info("on GPU %s", ", ".join(gpus[e] for e in held))
                return
        for lock in held.values():
            os.close(lock)
        if not waited:
            log.warning("waiting for %d of %d GPUs to be free", count, len(gpus))
            waited = True
        time.sleep(POLL)


def peak_memory_mb(device: object) -> float:
    """Most memory so far in MB: of the GPU by tensors, or of the process on the CPU."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
