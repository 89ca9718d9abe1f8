"""`python -m rerg.watch ...`: snakemake with these arguments, as a newcomer wants to watch it.

A line per finished job, and on a terminal a bar with the jobs under way. Warnings of jobs come at
the end; of an error, all that snakemake says, and its last line where it does not start. Its own
log keeps everything.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

NAMED = ("dataset", "variant", "method", "seed", "batch", "published")  # wildcards worth a word


class Watch:
    """Reads what snakemake prints, line by line.

    write: takes a line for the screen; bar: is moved with the finished jobs.
    """

    def __init__(self, write: Callable[[str], None], bar: tqdm):
        self.write, self.bar = write, bar
        self.rule, self.job, self.last = "", "", ""
        self.names: dict[str, str] = {}  # of the jobs under way
        self.began: dict[str, float] = {}
        self.warnings: dict[str, None] = {}
        self.failed = False

    def read(self, line: str) -> None:
        """A line of snakemake's."""
        line = line.rstrip("\n")
        self.last = line or self.last
        if re.match(r"(Error in |\w*(Error|Exception)\b)", line) or " ERROR " in line:
            self.failed = True
        if self.failed:
            self.write(line)
        elif match := re.match(r"(?:local)?rule (\w+):", line):
            self.rule = match[1]
        elif match := re.match(r"    jobid: (\d+)", line):
            self.job = match[1]
            self.names[self.job], self.began[self.job] = self.rule, time.monotonic()
            self._show()
        elif (match := re.match(r"    wildcards: (.*)", line)) and self.job in self.names:
            values = dict(part.split("=", 1) for part in match[1].split(", "))
            words = [values[name] for name in NAMED if name in values]
            self.names[self.job] = " ".join([self.rule, *words])
            self._show()
        elif match := re.match(r"Finished jobid: (\d+)", line):
            name, began = self.names.pop(match[1], ""), self.began.pop(match[1], time.monotonic())
            self.write(f"{name} ({time.monotonic() - began:.0f} s)")
        elif match := re.match(r"(\d+) of (\d+) steps", line):
            self.bar.total = int(match[2])
            self.bar.update(int(match[1]) - self.bar.n)
            self._show()
        elif match := re.search(r" WARNING (.*)", line):
            self.warnings[match[1]] = None

    def _show(self) -> None:
        under_way = [name for name in self.names.values() if name.split()[0] != "all"]
        self.bar.set_postfix_str("; ".join(under_way)[:60])


def watch(command: list[str]) -> int:
    """Run a command of snakemake's, and show how it goes; its exit status."""
    with tqdm(unit="job", disable=None, bar_format="{l_bar}{bar:20}{r_bar}") as bar:
        seen = Watch(lambda line: bar.write(line, file=sys.stderr), bar)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, text=True, errors="replace", bufsize=1, **pipes)
        _follow(child.stdout, seen)
        status = child.wait()
    if status and not seen.failed:  # before any job: the line of a bad config or option
        print(seen.last, file=sys.stderr)
    for warning in seen.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return status


def _follow(lines: Iterable[str], seen: Watch) -> None:
    """Read to the end, also where the user has asked snakemake to stop."""
    while True:
        try:
            for line in lines:
                seen.read(line)
            return
        except KeyboardInterrupt:
            seen.write("stopping; what is finished stays, and the same command goes on from there")


if __name__ == "__main__":
    sys.exit(watch([sys.executable, "-m", "snakemake", *sys.argv[1:]]))
