"""Run a public suite against an adapter: ``python -m tests.conformance NAME --source DIR``.

Prints how many tests passed, failed, and failed as expected (each kind with its reason).  The exit code is 1 when a
test failed that should pass, or passed that is expected to fail. Tests that depend on the machine's speed may do both.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.conformance.suites import SUITES, Suite

TEST_TIMEOUT_S = 120


def run(suite: Suite, source: Path, folder: Path) -> list[tuple[str, str]]:
    """Run a suite in a folder for it alone; return (name, outcome) of each test: passed, failed or skipped."""
    files = suite.prepare(source, folder)
    report = folder / "report.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}",
        f"--junitxml={report}", *(["-k", suite.select] if suite.select else []), *files,
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=False)
    return [_outcome(case) for case in ElementTree.parse(report).iter("testcase")]


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    name = f"{case.get('classname')}::{case.get('name')}"
    kinds = {child.tag for child in case}
    return name, "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def reason(reasons: Mapping[str, str], name: str) -> str | None:
    """Return the reason that is given for a test.  None: it is expected to pass."""
    return next((why for part, why in reasons.items() if re.search(rf"{re.escape(part)}\b", name)), None)


def main() -> int:
    """Read the command line, run one suite, and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(SUITES))
    parser.add_argument("--source", type=Path, required=True, help="the folder with the suite")
    arguments = parser.parse_args()
    suite = SUITES[arguments.name]
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        outcomes = run(suite, arguments.source.resolve(), Path(folder))
    expected: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    wrong = []
    for name, outcome in outcomes:
        timed = reason(suite.timed, name)
        why = timed or reason(suite.expected, name)
        if outcome == "failed" and why is not None:
            expected[why] += 1
        elif outcome == "failed" or (outcome == "passed" and why is not None and timed is None):
            wrong.append(f"{outcome}: {name}")
        counts[outcome] += 1
    print(f"{arguments.name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    for why, count in expected.most_common():
        print(f"{count:5} expected to fail: {why}")
    for line in wrong:
        print(f"unexpected: {line}")
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
