"""The farm's CURVE keys: one pair for the controller, one per role of its peers, one per enrolled agent.

They are made with the farm, are in ``keys.json`` in its folder (0600), and live until someone rotates or revokes them,
so that peers find their way back after a restart. A connection file has the controller's public key and one pair.
``keys.json``, which has the controller's secret key, is read only on the controller's host.

Each pair has a **title**, by which the controller knows its peers:

==============  =====================================================================================
``client``      allows everything
``reader``      allows reading, but no change
``agent``       the agents of the controller's own host
``agent:NAME``  an agent elsewhere; it may call itself NAME or ``NAME.anything``
==============  =====================================================================================

A session's own name binds it to a title, so that no peer can take over another's session, even if the controller has
just started and knows none: names of client sessions have no colon, those of readers begin with ``reader:``, and those
of agents with the agent's name and a colon.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..core import errors
from ..core.text import did_you_mean
from ..system import farm_paths
from ..system.farm_paths import ConnectionInfo
from ..system.odd_files import set_aside_if_lost, set_aside_unless_file, set_aside_unless_link
from ..system.private_files import without_locks
from . import wire

log = logging.getLogger(__name__)

KEYS_FILE = "keys.json"
LOCK_FILE = "keys.lock"
AGENTS_FOLDER = "agents"
"""The folder, in the farm's folder, of the connection files of enrolled agents."""
LOCKED_S = 10.0
"""How long (seconds) to wait for the lock; a change of keys takes milliseconds."""

ROLES = ("client", "reader", "agent")
SERVER = "server"
LOST_KEYS = (
    "clients and agents of its own machine find them, others need a new copy of their connection file, and enrolled "
    "agents are enrolled again by `ipytaskfarm keys add`"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "agent:"
_Z85 = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")


class KeyPair(msgspec.Struct, frozen=True):
    """A CURVE key pair, z85-encoded (40 characters each)."""

    public: str
    secret: str
    made_s: float = 0.0
    """Wall-clock time of its making; 0 if it was not recorded."""

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("public", self.public)]


class FarmKeys(msgspec.Struct, frozen=True):
    """All keys of a farm."""

    server: KeyPair
    client: KeyPair
    agent: KeyPair
    reader: KeyPair
    """For peers that may read but change nothing."""
    agents: dict[str, KeyPair] = {}
    """Enrolled agents by name."""

    def peers(self) -> dict[str, KeyPair]:
        """Return the keys that peers may have: title -> pair."""
        named = {_PREFIX + name: pair for name, pair in self.agents.items()}
        return {"client": self.client, "agent": self.agent, "reader": self.reader, **named}


def role_of(title: str) -> str:
    """Return the role of a title: client, reader or agent."""
    return title.partition(":")[0]


def session_fits(title: str, session: str) -> bool:
    """Return whether a peer with the key of this title may have a session of this name."""
    owner = session.rpartition(":")[0]
    if title == "client":
        return not owner
    name = title.partition(":")[2] or title
    return owner == name or (title != "reader" and owner.startswith(f"{name}."))


def check_agent_name(name: str) -> str:
    """Return an agent's name if it is valid.

    Raises:
        ValueError: it is not. The message says which names are.
    """
    if not _NAME.fullmatch(name) or name.partition(".")[0] in (*ROLES, SERVER):
        raise ValueError(
            f"{name!r} cannot be an agent's name: letters, digits, '.', '_' and '-', at most 64, beginning with a "
            f"letter or digit, and neither {', '.join(ROLES)} nor {SERVER}, which are keys of the farm's own"
        )
    return name


# ------------------------------------------------------------------------------------------------- making


def make_keypair() -> KeyPair:
    """Return a fresh key pair."""
    return KeyPair(*wire.curve_keypair(), time.time())


def make_farm_keys() -> FarmKeys:
    """Return fresh keys for a new farm."""
    return FarmKeys(make_keypair(), make_keypair(), make_keypair(), make_keypair())


def with_agents(keys: FarmKeys, names: list[str]) -> FarmKeys:
    """Return the keys with keys for these agents added. An agent that has a key keeps it.

    Raises:
        ValueError: a name is not valid, or another agent's key covers it already.
    """
    agents = dict(keys.agents)
    for name in map(check_agent_name, names):
        near = next((other for other in agents if _covers(other, name) or _covers(name, other)), None)
        if near is not None:
            raise ValueError(
                f"agents {name!r} and {near!r}: a key is also good for names that begin with its own and a dot, so "
                "these two would have one another's; choose another name"
            )
        agents.setdefault(name, make_keypair())
    return msgspec.structs.replace(keys, agents=agents)


def _covers(name: str, other: str) -> bool:
    return other.startswith(f"{name}.")


def without_agents(keys: FarmKeys, names: list[str]) -> FarmKeys:
    """Return the keys without the keys of the given agents.

    Raises:
        KeyError: an agent has no key.
    """
    _must_have(keys, names)
    return msgspec.structs.replace(keys, agents={n: pair for n, pair in keys.agents.items() if n not in names})


def rotated(keys: FarmKeys, names: list[str]) -> FarmKeys:
    """Return the keys with fresh ones for these agents and roles, which may include `SERVER`.

    Raises:
        KeyError: there is no such key.
    """
    own = {*ROLES, SERVER}
    _must_have(keys, [name for name in names if name not in own])
    agents = {name: make_keypair() if name in names else pair for name, pair in keys.agents.items()}
    fresh = {name: make_keypair() for name in names if name in own}
    return msgspec.structs.replace(keys, agents=agents, **fresh)


def _must_have(keys: FarmKeys, names: list[str]) -> None:
    for name in names:
        if name not in keys.agents:
            known = ", ".join(sorted(keys.agents)) or "none"
            near = did_you_mean(name, keys.agents)
            raise KeyError(f"there is no agent {name!r} with a key of its own: agents with one are {known}{near}")


# --------------------------------------------------------------------------------------------- on the disk


@contextmanager
def keys_lock(folder: Path) -> Iterator[None]:
    """Prevent changes of the farm's keys by others during the block.

    Raises:
        FarmExists: another process changes them, for an unusually long time.
    """
    farm_paths.private_folder(folder)
    set_aside_unless_file(folder / LOCK_FILE)
    file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCKED_S
        while True:
            try:
                # Not lockf: flock also excludes other threads of this process.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise errors.FarmExists(
                        f"another process has held {folder / LOCK_FILE} for {LOCKED_S:g} s: look for a stopped "
                        "`ipytaskfarm keys`, and end it"
                    ) from None
            except OSError as error:
                raise without_locks(folder / LOCK_FILE, error) from None
            time.sleep(0.01)
        yield
    finally:
        os.close(file)


def save_keys(keys: FarmKeys, folder: Path) -> None:
    """Write ``keys.json`` into the farm's folder."""
    farm_paths.private_folder(folder)
    farm_paths.write_private(folder / KEYS_FILE, msgspec.json.encode(keys))


def load_keys(folder: Path) -> FarmKeys | None:
    """Return the keys in the farm's folder; None if it has none yet.

    Raises:
        SecurityError: the file is damaged, or others can read it.
    """
    path = folder / KEYS_FILE
    try:
        text = farm_paths.read_private(path)
    except FileNotFoundError:
        return None
    try:
        return _checked(msgspec.json.decode(text, type=FarmKeys))
    except (msgspec.MsgspecError, ValueError) as error:
        raise errors.SecurityError(
            f"{path} is damaged ({error}): put it back from a backup, or remove it. Then the farm makes "
            "new keys when it starts, and its clients must connect again"
        ) from None


def _checked(keys: FarmKeys) -> FarmKeys:
    """Return the keys if their values can be keys and names. Raises ValueError: one cannot."""
    for name in keys.agents:
        check_agent_name(name)
    for title, pair in [(SERVER, keys.server), *keys.peers().items()]:
        if not (_Z85.fullmatch(pair.public) and _Z85.fullmatch(pair.secret)):
            raise ValueError(f"the value of {title} is no key")
    return keys


def farm_keys(folder: Path) -> FarmKeys:
    """Return the farm's keys, which are made if there are none.

    What stands in the place of the file and is none has no keys in it.
    """
    with keys_lock(folder):
        if set_aside_if_lost(folder / KEYS_FILE):
            log.warning("its keys are lost, so the farm has new ones: %s", LOST_KEYS)
        keys = load_keys(folder)
        if keys is None:
            keys = make_farm_keys()
            save_keys(keys, folder)
        return keys


# ---------------------------------------------------------------------------------------- connection files


def agent_file(folder: Path, name: str) -> Path:
    """Return the path of an enrolled agent's connection file."""
    return folder / AGENTS_FOLDER / f"{check_agent_name(name)}.json"


def info_for(info: ConnectionInfo, keys: FarmKeys, title: str) -> ConnectionInfo:
    """Return the connection file for one key, made from that of another key.

    An enrolled agent is given the address at which other machines find the farm, and no unix socket.
    """
    pair = keys.peers()[title]
    name = title.partition(":")[2]
    elsewhere = {"host": info.location or info.host, "location": "", "agent": name, "socket": ""} if name else {}
    return msgspec.structs.replace(
        info, public_key=pair.public, secret_key=pair.secret, role=role_of(title), **elsewhere
    )


def write_agent_files(info: ConnectionInfo, keys: FarmKeys, folder: Path) -> None:
    """Write the connection files of all enrolled agents, and remove those of others. Unchanged files stay."""
    place = folder / AGENTS_FOLDER
    if not keys.agents and not place.exists():
        return
    set_aside_unless_link(place)
    farm_paths.private_folder(place)
    for name in keys.agents:
        write_if_new(info_for(info, keys, _PREFIX + name), agent_file(folder, name))
    remove_agent_files(keys, folder)


def remove_agent_files(keys: FarmKeys, folder: Path) -> None:
    """Remove the connection files of agents that are not enrolled (any more)."""
    for path in (folder / AGENTS_FOLDER).glob("*.json"):
        if path.name.removesuffix(".json") not in keys.agents:
            set_aside_unless_file(path)
            path.unlink(missing_ok=True)


def write_if_new(info: ConnectionInfo, path: Path) -> None:
    """Write a connection file unless it exists with this content: hundreds of files take their time."""
    try:
        if farm_paths.read_connection_file(path) == info:
            return
    except (errors.SecurityError, errors.ConnectionError):
        pass
    farm_paths.write_connection_file(info, path)
