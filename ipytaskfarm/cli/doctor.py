"""``ipytaskfarm doctor``: finds conditions that could keep a farm from working, and names the remedies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from traitlets import Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, JsonCommand, UsageError, flag, switch
from ipytaskfarm.cli.json_output import print_json
from ipytaskfarm.core.arguments import check_count
from ipytaskfarm.doctor import Finding, Level, rounds


class Doctor(JsonCommand):
    """``ipytaskfarm doctor``"""

    name = "doctor"
    description = """
Checks this machine, and the farm if it runs: Python and packages, limits, memory, folders, keys, ports, names, the
clock, agents, launchers. Each check prints one line: ok, warning or wrong, the finding, and the remedy. Exit code 1
means that something is wrong. On another machine, --agent-file checks it as a machine for an agent, and tries to
connect to the farm.
"""
    examples = """
        ipytaskfarm doctor
        ipytaskfarm doctor --farm nightly --json
        ipytaskfarm doctor --try
        ipytaskfarm doctor --agent-file node7.json
    """
    n = flag(
        "N", Int(None, allow_none=True, help="the number of engines to check for (default: one per core)"), "n engines"
    )
    agent_file = flag(
        "FILE", Unicode(None, allow_none=True, help="check this machine for the agent of that connection file")
    )
    tries = switch("also start a farm of one engine, run a task on it, and stop it", "try")

    def carry_out(self) -> int:
        try:
            wanted = check_count("-n", self.n, 0)
        except ValueError as error:
            raise UsageError(str(error)) from None
        findings = []
        for finding in self._look(wanted):
            findings.append(finding)
            if not self.json:
                _tell(finding)
        if self.json:
            print_json([asdict(finding) for finding in findings])
        return FAILED if any(finding.level is Level.WRONG for finding in findings) else OK

    def _look(self, wanted: int | None) -> Iterator[Finding]:
        if self.agent_file is not None:
            yield from rounds.of_agent(Path(self.agent_file).expanduser().absolute(), wanted)
        else:
            yield from rounds.of_farm(self.home(), wanted)
        if self.tries:
            yield rounds.trial()


def _tell(finding: Finding) -> None:
    print(f"{finding.level:<8} {finding.check}: {printing.safe(finding.found)}", flush=True)
    if finding.remedy:
        print(f"{'':8} do: {printing.safe(finding.remedy)}", flush=True)
