"""``ipytaskfarm keys``: manages the keys with which peers may connect to a farm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from traitlets import Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, flag, no_such_farm, switch, unknown_action
from ipytaskfarm.cli.json_output import moment, print_json
from ipytaskfarm.core.messages import ListConnections
from ipytaskfarm.core.messages.tables import ConnectionTable
from ipytaskfarm.deployment import enrolment
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.tables import Column
from ipytaskfarm.transport.keys import ROLES, SERVER, FarmKeys, check_agent_name, load_keys, role_of

COLUMNS = ("key", "role", Column("made", 1, least=19), Column("connected", 2, right=True), Column("from", 3))


class Keys(JsonCommand):
    """``ipytaskfarm keys``"""

    name = "keys"
    arguments = "list | add NAME | rotate NAME… | revoke NAME…"
    description = """
Lists the keys by which clients and agents connect, makes a key for an agent on another machine, replaces keys, or
revokes those of agents. The command works on the controller's host, for the farm's own user; a running farm applies
the change at once.
"""
    examples = """
        ipytaskfarm keys list
        ipytaskfarm keys add node7 --output node7.json
        ipytaskfarm keys add --reader --output colleagues.json
        ipytaskfarm keys rotate client reader
        ipytaskfarm keys revoke node7
    """
    output = flag("FILE", Unicode(None, allow_none=True, help="with add: write the connection file there"))
    reader = switch("with add: a file for read-only clients")
    client = switch("with add: a file for clients with all rights")
    everything = switch("with rotate: every key", "all")

    of_action: ClassVar[dict[str, tuple[str, ...]]] = {
        "output": ("add",),
        "reader": ("add",),
        "client": ("add",),
        "everything": ("rotate",),
    }

    def carry_out(self) -> int:
        what, *words = self.extra_args or ["list"]
        actions = {"list": self._list, "add": self._add, "rotate": self._rotate, "revoke": self._revoke}
        if what not in actions:
            raise unknown_action(what, actions)
        self.check_action(what)
        home = self.home()
        if load_keys(home.folder) is None:
            raise no_such_farm(home.name)
        return actions[what](home, words)

    # ------------------------------------------------------------------------------------ list

    def _list(self, home: Home, words: list[str]) -> int:
        if words:
            raise UsageError("`keys list` takes nothing more")
        keys = load_keys(home.folder)
        assert keys is not None
        rows = _rows(keys, _connected(home))
        if self.json:
            print_json(rows)
            return OK
        shown = [
            (
                row["name"],
                row["role"],
                (row["made_at"] or "")[:19].replace("T", " "),
                len(row["connected"]) or "",
                ", ".join(row["connected"]),
            )
            for row in rows
        ]
        printing.table(COLUMNS, shown)
        return OK

    # ------------------------------------------------------------------------------------ add

    def _add(self, home: Home, words: list[str]) -> int:
        if self.reader or self.client:
            title = "reader" if self.reader else "client"
            if words or self.output is None or (self.reader and self.client):
                raise UsageError("`keys add --reader --output FILE` (or --client): one of the two, and no name")
            enrolment.write_copy(enrolment.connection_info(home, title), self._target())
            return self._say(title, self._target(), f"a file for {title}s is {self._target()}")
        if len(words) != 1:
            raise UsageError("which agent? `keys add NAME`, with one name")
        (name,) = words
        try:
            check_agent_name(name)
            path = enrolment.enrol(home, [name])[name]
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self.output is not None:
            path = self._target()
            enrolment.write_copy(enrolment.connection_info(home, f"agent:{name}"), path)
        later = "" if path.exists() else ", as soon as the farm is started"
        return self._say(name, path, f"agent {name!r} connects by {path}{later}")

    def _target(self) -> Path:
        return Path(str(self.output)).expanduser().absolute()

    def _say(self, name: str, path: Path, line: str) -> int:
        if self.json:
            print_json({"name": name, "connection_file": str(path)})
        else:
            print(line)
        return OK

    # ------------------------------------------------------------------------------------ rotate, revoke

    def _rotate(self, home: Home, words: list[str]) -> int:
        keys = load_keys(home.folder)
        assert keys is not None
        if bool(words) is self.everything:
            raise UsageError("which keys? Their names, as `keys list` shows them, or --all")
        names = [SERVER, *ROLES, *keys.agents] if self.everything else words
        cut = enrolment.rotate(home, names)
        lines = [
            f"{_number(names)} replaced, {printing.number(cut, 'connection')} cut; copies of the old files are refused"
        ]
        if SERVER in names:
            lines.append("the server's key takes effect when the farm is started next; then all copies are refused")
        return self._tell(names, cut, lines)

    def _revoke(self, home: Home, words: list[str]) -> int:
        if not words:
            raise UsageError("whose key? `keys revoke NAME`, as `keys list` shows it")
        roles = [name for name in words if name in (*ROLES, SERVER)]
        if roles:
            raise UsageError(
                f"{roles[0]} is the farm's own key: `keys rotate {roles[0]}` replaces it, and holders of the old one"
                " lose access"
            )
        cut = enrolment.revoke(home, words)
        return self._tell(words, cut, [f"{_number(words)} revoked, {printing.number(cut, 'connection')} cut"])

    def _tell(self, names: list[str], cut: int, lines: list[str]) -> int:
        if self.json:
            print_json({"names": names, "connections_cut": cut})
        else:
            print("\n".join(lines))
        return OK


def _number(names: list[str]) -> str:
    return printing.number(len(set(names)), "key")


def _connected(home: Home) -> dict[str, list[str]]:
    """Return title of a key -> names of the peers that are connected with it."""
    if home.living_info() is None:
        return {}
    with connect(home.name) as questioner:
        reply = questioner.answer_for(ListConnections(), ConnectionTable)
    found: dict[str, list[str]] = {}
    for row in reply.rows:
        if row.there and not row.name.endswith(f" {os.getpid()}"):  # not this very command
            found.setdefault(row.key, []).append(row.name)
    return found


def _rows(keys: FarmKeys, connected: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return one line for each key, without the key itself."""
    pairs = {SERVER: keys.server, **keys.peers()}
    return [
        {
            "name": title.partition(":")[2] or title,
            "role": role_of(title),
            "made_at": moment(pair.made_s or None),
            "connected": sorted(connected.get(title, [])),
        }
        for title, pair in pairs.items()
    ]
