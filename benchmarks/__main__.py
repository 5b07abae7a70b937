"""``python -m benchmarks [--tasks N] [--rounds N] [--engines N]``."""

from __future__ import annotations

import argparse

from benchmarks import throughput


def main() -> None:
    """Run all measurements and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks per round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median is shown (default %(default)s)")
    parser.add_argument("--engines", type=int, default=2, help="engines, and pool processes (default %(default)s)")
    arguments = parser.parse_args()
    throughput.main(arguments.tasks, arguments.rounds, arguments.engines)


# The pool's processes import this file again.
if __name__ == "__main__":
    main()
