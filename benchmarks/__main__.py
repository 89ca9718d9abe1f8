"""All benchmarks of a finished run: one table, and the same as JSON.

    python -m benchmarks results/demo [solvers pnp_reg deq network growth overhead]
        [--variant rerg] [--images FOLDER] [--crop 64] [--count 2] [--json results/bench.json]

Each benchmark runs in a process of its own, on one thread where it does not say otherwise; both
sides of a row are timed in that process in turn.
"""

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measure import ROOT, Workload, rows_of
from rerg.config import InputError
from rerg.provenance import machine

HEADER = """| what | ours | theirs | unit | ratio | quartiles | goal | met | note |
|---|---:|---:|---|---:|---|---|---|---|"""
NAMES = ("solvers", "pnp_reg", "deq", "network", "growth", "overhead")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--variant", default="rerg", help="whose RG is measured")
    parser.add_argument("--images", type=Path, help="folder; default: the embedded test set")
    parser.add_argument("--crop", type=int, default=64, help="pixels of a side of their centres")
    parser.add_argument("--count", type=int, default=2, help="images that solvers restore, at most")
    parser.add_argument("--quick", action="store_true", help="toy sizes: whether it runs at all")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "bench.json")
    given = parser.parse_args()
    if unknown := sorted({*given.names} - {*NAMES}):
        parser.error(f"{unknown[0]}: expected one of {', '.join(NAMES)}")
    if given.variant == "mtdeq":
        parser.error("mtdeq: expected an RG, as gradient descent restores by no other")
    work = Workload(
        given.run,
        variant=given.variant,
        folder=given.images,
        crop=given.crop,
        count=given.count,
        quick=given.quick,
    )
    found, seconds = [], {}
    print(HEADER, flush=True)
    spawn = multiprocessing.get_context("spawn")
    try:
        about = {"machine": machine(), "run": str(given.run), "spec": asdict(work.spec)}
        with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
            for name in given.names or NAMES:
                began = time.perf_counter()
                print(f"{name} ...", file=sys.stderr, flush=True)
                found += pool.submit(rows_of, name, work).result()
                seconds[name] = time.perf_counter() - began
    except InputError as error:
        sys.exit(str(error))
    entries = [{**asdict(row), "met": row.met} for row in found]
    content = {**about, "seconds": seconds, "rows": entries}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{machine()['processor']}, {machine()['cores']} cores, ", end="")
    print(f"torch {torch.__version__}, ", end="")
    print(f"{sum(seconds.values()):.0f} s; written to {given.json}")


if __name__ == "__main__":
    main()
