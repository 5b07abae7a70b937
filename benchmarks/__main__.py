"""``python -m benchmarks [names] [--rounds N] [--scale S] [--engines N] [--write | --profile]``."""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TypeAlias

import msgspec

from benchmarks import report
from benchmarks.harness import NOTES, ROUNDS, Options, Row, machine
from benchmarks.profile import profile

NAMES = (
    "run_loop", "functions", "latency", "maps", "graphs", "million", "depend", "data", "start", "idle", "scaling",
    "simulated", "agents", "adapters",
)  # fmt: skip


Measured: TypeAlias = tuple[list[Row], list[str], list[dict[str, list[float]]]]
"""Rows, remarks and rounds."""


def measured_apart(name: str, options: Options) -> Measured:
    """Measure in a process of its own: what other systems import and start would slow the next measurements.

    Raises CalledProcessError if the measurement fails."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "measured.json")
        settings = [f"--rounds={options.rounds}", f"--scale={options.scale}", f"--engines={options.engines}"]
        subprocess.run([sys.executable, "-m", "benchmarks", name, f"--into={into}", *settings], check=True)
        return msgspec.json.decode(into.read_bytes(), type=Measured)


def main() -> int:
    """Run all measurements, or the named ones; return an exit code that says whether all of them could be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks (default 1.0)")
    parser.add_argument("--engines", type=int, default=2, help="engines, and workers of the peers (default 2)")
    parser.add_argument("--write", action="store_true", help="write table, figures and picture into docs/")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="measure in this process, and write the figures there"
    )
    parser.add_argument("--profile", action="store_true", help="instead: where one task's time goes, by process")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}: there are {', '.join(NAMES)}")
    options = Options(given.rounds, given.scale, given.engines)
    if given.profile:
        for line in profile(options):
            print(line, flush=True)
        return 0
    if given.into:
        measured = importlib.import_module(f"benchmarks.{given.names[0]}").measure(options)
        given.into.write_bytes(msgspec.json.encode((measured, NOTES, ROUNDS)))
        return 0
    facts = machine()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    rows: list[Row] = []
    failed = False
    for name in given.names or NAMES:
        print(f"{name} …", flush=True)
        try:
            found, remarks, rounds = measured_apart(name, options)
            rows += found
            NOTES.extend(text for text in remarks if not (text.startswith("the store lies") and NOTES))
            ROUNDS.extend(rounds)
        except Exception:  # the other measurements still run
            traceback.print_exc()
            failed = True
    print(f"\n{report.table(rows)}")
    if given.write and (failed or given.names):
        print("nothing is written: the page is for a run of all measurements, without failures")
    elif given.write:
        report.write(rows, facts, f"python -m benchmarks {shlex.join(sys.argv[1:])}")
    return int(failed)


# The processes of a pool import this file again.
if __name__ == "__main__":
    sys.exit(main())
