"""Seconds that Snakemake takes to read the workflow and build the DAG of a larger grid.

    python -m benchmarks.dag [times; default 10]

The grid is config/paper.yaml's with every problem so many times over. To be held: 11 s at 10, on
an idle machine; on a busy one the seconds of the processor tell.
"""

import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from rerg.config import read_yaml

ROOT = Path(__file__).parents[1]


def enlarged(folder: Path, times: int) -> None:
    """A copy of the workflow in a folder, with `times` as many problems."""
    for name in ("rerg", "workflow"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copytree(ROOT / "config", folder / "config")
    problems = read_yaml(ROOT / "config" / "problems.yaml")
    config = read_yaml(ROOT / "config" / "paper.yaml")

    def copies(names: list[str]) -> list[str]:
        suffixes = ["", *map("x{}".format, range(1, times))]
        return [name + suffix for suffix in suffixes for name in names]

    larger = {copy: problems[name] for name in problems for copy in copies([name])}
    config["problems"] = copies(config["problems"])
    for block in config["comparisons"]:
        block["problems"] = copies(block["problems"])
    (folder / "config" / "problems.yaml").write_text(yaml.safe_dump(larger))
    (folder / "config" / "paper.yaml").write_text(yaml.safe_dump(config))


def planned(config: str, folder: Path, *options: str) -> dict[str, int]:
    """The jobs of each rule, and in `total`, that a dry run in a folder lists."""
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", *options]
    command += ["--configfile", config]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return {rule: int(n) for rule, n in re.findall(r"^([\w-]+) +(\d+)$", done.stdout, re.M)}


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for factor in (1, times):
        with tempfile.TemporaryDirectory() as folder:
            enlarged(Path(folder), factor)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            jobs = planned("config/paper.yaml", Path(folder))["total"]
            seconds = time.perf_counter() - began
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{factor:3} x the problems: {jobs} jobs, {seconds:.1f} s, {cpu:.1f} s of the processor"
        )


if __name__ == "__main__":
    main()
