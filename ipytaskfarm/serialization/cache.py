"""A cache of picklers, packed functions and packed class definitions, which are all used more than once."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import sys
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from math import inf
from time import monotonic
from typing import Any

from ..core.messages.payload import DIGEST_BYTES, IN_BLOB, READ_ONLY, WITH_BUFFERS
from ..core.messages.task_types import Function
from ..storage.blobs import BLOB_BYTES, BlobWriter, mapped, missing_blob
from . import rebuild as build, session_state
from .digests import Digester
from .file_looks import pack_looks
from .function_templates import lasting
from .guards import Guard
from .hash_cycles import dump_settled
from .held_clients import absent_client_pickler
from .kept_changes import changes_itself
from .known_classes import digests_on_arrival, note_original
from .module_origin import when_rules_change
from .named_members import member_pickler
from .pickler import Pickler, dump_inline, dumps_inline
from .standard_values import later, refuse_connections, used_marks

_POOLED_MAX = 8
_modules = sys.modules
_ENTRIES_MAX = 1024
_OUT_OF_BAND_BYTES = 16 * 1024
_BESIDE_BYTES = 2**20
"""So many bytes of buffers that are too small to be blobs stand beside a pickle. Further ones stay in it, so that it
becomes a blob itself: a list of a thousand small arrays would travel inside messages."""
_ALIGNMENT = 64
_PAUSE_LOOKS = 100
_DEFINITION_BYTES = 4 * 2**20
"""The pickle of a function is a blob from this size on. Smaller ones, with sources of modules in them, stay inside:
then the function has a name that does not depend on its pickle, and is not packed again at each call."""


class _Beside:
    """The buffers that stand beside a pickle."""

    __slots__ = ("buffers", "small_bytes")

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.small_bytes = 0

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether a buffer stays in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous
        if raw.nbytes < _OUT_OF_BAND_BYTES:
            return True
        if raw.nbytes < BLOB_BYTES:
            self.small_bytes += raw.nbytes
            if self.small_bytes > _BESIDE_BYTES:
                return True
        self.buffers.append(raw)
        return False


class _Sink(_Beside):
    """A pickler with its output and the large buffers that it met."""

    __slots__ = ("file", "pickler")

    def __init__(self) -> None:
        super().__init__()
        self.file = io.BytesIO()
        self.pickler = Pickler(self.file, 5, buffer_callback=self.take)

    def dump(self, obj: Any, writer: BlobWriter | None) -> bytes:
        """Return one pack. After an exception the sink must not be used again."""
        dump_settled(self.pickler, self.file, obj)
        data = self.file.getvalue()
        if self.buffers or (writer is not None and len(data) >= BLOB_BYTES):
            data = b"".join(_laid_out(data, self.buffers, writer))
            self.buffers, self.small_bytes = [], 0
        self.file.seek(0)
        self.file.truncate()
        self.pickler.forget()
        return data


_pool: list[_Sink] = []


def dumps(obj: Any, writer: BlobWriter | None = None) -> bytes:
    """Pickle an object; buffers of 16 KiB and more stand beside the pickle, and large parts go to `writer` if there is
    one.
    """
    if later and later[0] in _modules:
        refuse_connections()
    try:
        sink = _pool.pop()
    except IndexError:
        sink = _Sink()
    data = sink.dump(obj, writer)
    if len(_pool) < _POOLED_MAX:
        _pool.append(sink)
    return data


def _laid_out(
    data: bytes, buffers: list[memoryview], writer: BlobWriter | None, pickle_bytes: int = BLOB_BYTES
) -> list[bytes | memoryview]:
    """Return the parts of a pack in order.

    They are: marker, number of buffers, length of the pickle, lengths of the buffers; the pickle; the aligned buffers.
    A pickle of `pickle_bytes` and more is a blob, as a buffer of `BLOB_BYTES` and more is.
    """
    sizes: list[int] = []
    places: list[bytes | memoryview] = []
    for part, least in ((memoryview(data), pickle_bytes), *((buffer, BLOB_BYTES) for buffer in buffers)):
        digest = writer.keep(part) if writer is not None and part.nbytes >= least else None
        flags = (READ_ONLY if part.readonly else 0) | (IN_BLOB if digest is not None else 0)
        sizes.append(part.nbytes | flags)
        places.append(part if digest is None else digest)
    sizes[0] &= ~READ_ONLY
    head = struct.pack(f"<BxxxI{len(sizes)}Q", WITH_BUFFERS, len(buffers), *sizes)
    parts: list[bytes | memoryview] = [head, places[0]]
    position = len(head) + len(places[0])
    for place in places[1:]:
        gap = -position % _ALIGNMENT
        parts += [b"\0" * gap, place]
        position += gap + len(place)
    return parts


def unframe(view: memoryview) -> tuple[memoryview, list[memoryview | bytearray]]:
    """Return the pickle and its buffers.

    Blobs are mapped. A buffer is copied if the object wants to write into it and the pack's memory is read-only.
    """
    count, length = struct.unpack_from("<4xIQ", view)
    sizes = struct.unpack_from(f"<{count}Q", view, 16)
    position = 16 + 8 * count
    data, position = _part(view, position, length)
    buffers: list[memoryview | bytearray] = []
    for size in sizes:
        part, position = _part(view, position + -position % _ALIGNMENT, size)
        if size & READ_ONLY:
            buffers.append(part.toreadonly())
        else:
            buffers.append(bytearray(part) if part.readonly else part)
    return data, buffers


def loads(pack: bytes | memoryview) -> Any:
    """Return the object of a pack."""
    if pack[0] != WITH_BUFFERS:
        return pickle.loads(pack)
    body, buffers = unframe(memoryview(pack))
    return pickle.loads(body, buffers=buffers)


def blob_digests(pack: bytes) -> list[bytes]:
    """Return the digests of the large values that a pack refers to."""
    if not pack or pack[0] != WITH_BUFFERS:
        return []
    view = memoryview(pack)
    count, length = struct.unpack_from("<4xIQ", view)
    found, position = [], 16 + 8 * count
    for place, size in enumerate((length, *struct.unpack_from(f"<{count}Q", view, 16))):
        if place:
            position += -position % _ALIGNMENT
        if size & IN_BLOB:
            found.append(bytes(view[position : position + DIGEST_BYTES]))
            position += DIGEST_BYTES
        else:
            position += size & ~READ_ONLY
    return found


def damage_of(pack: bytes) -> str:
    """Return which large value of a pack does not have its digest; "" if all have.  This reads all of them.

    Raises:
        BlobMissing: one is not available.
    """
    for digest in blob_digests(pack):
        if hashlib.sha256(mapped(digest)).digest() != digest:
            return f"its large value {digest.hex()[:12]}… does not have its digest"
    return ""


def _whole(digest: bytes, size: int) -> memoryview:
    """Return a blob, which must have the size that it was written with."""
    found = mapped(digest)
    if found.nbytes != size:
        raise missing_blob(digest, f"its file is damaged: it has {found.nbytes:,} bytes, and {size:,} were written")
    return found


def _part(view: memoryview, position: int, size: int) -> tuple[memoryview, int]:
    """Return the part that begins at this position, and the position of its end."""
    if size & IN_BLOB:
        end = position + DIGEST_BYTES
        return _whole(bytes(view[position:end]), size & ~(READ_ONLY | IN_BLOB)), end
    end = position + (size & ~READ_ONLY)
    return view[position:end], end


# --------------------------------------------------------------------------------------------------


class KeptEntry:
    """A kept value with its guards."""

    __slots__ = ("guards", "look_s", "owner", "seen", "value")

    def __init__(self, owner: weakref.ref[Any], guards: list[Guard] | None, value: Any) -> None:
        self.owner = owner
        self.guards = guards
        """The guards of the value; None if something in it can change unseen."""
        self.value = value
        self.seen = b""
        """The function's pack at the most recent look; only used if `guards` is None."""
        self.look_s = inf
        """When to look again at what the function reads of this session."""


class KeptPacks:
    """Values by the identity of the objects that they were made from, for as long as those objects live."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, KeptEntry] = OrderedDict()

    def get(self, owner: Any) -> KeptEntry | None:
        """Return what is kept for an owner."""
        entry = self._entries.get(id(owner))  # of most
        if entry is not None and entry.owner() is owner:
            return entry
        found = lasting(owner)
        entry = self._entries.get(found.key)
        return entry if entry is not None and found.is_of(entry.owner) else None

    def put(self, owner: Any, guards: list[Guard] | None, value: Any) -> KeptEntry | None:
        """Keep a value for its owner.

        Return None if the owner does not support weak references, so that it cannot be kept.
        """
        found = lasting(owner)
        key = found.key
        entries = self._entries

        def forget(reference: weakref.ref[Any]) -> None:
            entry = entries.get(key)
            if entry is not None and entry.owner is reference:
                del entries[key]

        try:
            reference = found.reference(forget)
        except TypeError:
            return None
        entry = entries[key] = KeptEntry(reference, guards, value)
        while len(entries) > _ENTRIES_MAX:
            entries.popitem(last=False)
        return entry

    def clear(self) -> None:
        """Forget all packs."""
        self._entries.clear()


def hold(guards: list[Guard]) -> bool:
    """Return whether all guards hold."""
    for guard in guards:  # noqa: SIM110 - a generator costs more than the guards
        if not guard.holds():
            return False
    return True


_SESSION = uuid.uuid4().hex
_functions = KeptPacks()
_classes = KeptPacks()
# Guards compare a module that a function uses by its identity: they do not notice that it goes another way now.
when_rules_change(_functions.clear)
when_rules_change(_classes.clear)


def unchanged_function(function: object) -> Function | None:
    """Return a function (or an environment) as it was packed before, if its guards tell that nothing of it changed."""
    entry = _functions.get(function)
    if entry is None or entry.guards is None or not hold(entry.guards):
        return None
    if monotonic() >= entry.look_s:
        _look_again(entry, function)
    known: Function = entry.value
    return known


def _look_again(entry: KeptEntry, function: object) -> None:
    """Tell what this session has set since the function was packed, and tasks do not have."""
    session_state.begin()
    entry.look_s = _look_s(function, is_known=True)
    session_state.end()


def _look_s(function: object, *, is_known: bool = False) -> float:
    """Note what a function reads of this session, and return when to look again, so that looks take 1 % of the time."""
    began_s = monotonic()
    session_state.look_through(function, is_known=is_known)
    ended_s = monotonic()
    return ended_s + _PAUSE_LOOKS * (ended_s - began_s)


def packed_function(function: Any, writer: BlobWriter | None = None, *, is_environment: bool = False) -> Function:
    """Return the packed function (or environment), for which `unchanged_function` has nothing.

    The earlier pack is reused if what its digest covers has not changed.

    Args:
        function: what is packed.
        writer: writes large values in it as blobs; None: they stay in the pack.
        is_environment: whether it is an environment, which engines keep for tasks of other sessions.
    """
    with pack_looks.of_one_pack():
        return _packed_function(function, writer, is_environment)


def _packed_function(function: Any, writer: BlobWriter | None, is_environment: bool) -> Function:
    entry = _functions.get(function)
    # The function is packed first, because the errors of the pickler say which part cannot travel.
    renews = not is_environment and changes_itself(function)
    packed = build.Renewing(function) if renews else function
    parts, special = _parts_and_members(packed, writer, None if is_environment else function)
    is_known = entry is not None and _same(entry.seen, parts)
    look_s = entry.look_s if entry is not None and is_known else 0.0
    if is_environment:
        look_s = inf
    elif monotonic() >= look_s:
        look_s = _look_s(function)
    of_session = session_state.end(of_setup=is_environment) or renews
    if entry is not None and is_known:
        entry.look_s = look_s
        seen: Function = entry.value
        return seen
    code = b"".join(parts)
    if special or _refers_to_blobs(parts):
        # Named by its pack: whoever submits a function of this name has its blobs, and the large values themselves
        # are not looked through again.
        digester = None
        key = _SESSION.encode() if special and of_session else b""
        digest = hashlib.blake2b(code, digest_size=20, key=key).hexdigest()
    else:
        digester = Digester()
        digest = digester.digest(function)
        # A function with another `object()` is another one; one that counts its calls begins anew in each session. One
        # that has moved in its file is sent anew, because its errors name its lines.
        of_session = of_session or digester.has_state
        own = [*sorted(used_marks.keys), *([_SESSION] if of_session else []), *sorted(digester.places)]
        if own and not is_environment:
            digest = _joined(digest, *own)
    made = entry.value if entry is not None and entry.value.digest == digest else Function(digest=digest, code=code)
    sure = digester is not None and digester.sure
    entry = _functions.put(function, digester.guards if digester is not None and sure else None, made)
    if entry is not None:
        if not sure:
            entry.seen = code
        entry.look_s = look_s
    return made


def _parts_and_members(
    packed: Any, writer: BlobWriter | None, function: object
) -> tuple[list[bytes | memoryview], dict[str, None]]:
    """Return the pack of a function, and what in it travels in another way because it cannot be pickled: members of
    modules by name, and clients as stand-ins.

    function: the function that is noted to use these members; None: none may go so.
    """
    session_state.begin()
    used_marks.keys.clear()
    try:
        return _parts_inline(packed, writer), {}
    except Exception:
        members = member_pickler() if function is not None else None
        kind = members or absent_client_pickler()
        session_state.begin()
        used_marks.keys.clear()
        parts = _parts_inline(packed, writer, kind)
        if members is None:
            return parts, kind.left_out
        session_state.note_members(getattr(function, "__qualname__", ""), members.named)
        return parts, {**members.named, **kind.left_out}


def _parts_inline(function: Any, writer: BlobWriter | None, kind: type[Pickler] = Pickler) -> list[bytes | memoryview]:
    """Return a pack of the function in parts. Its large buffers are not copied until the parts are joined."""
    if later and later[0] in _modules:
        refuse_connections()
    beside = _Beside()
    data = dump_inline(function, kind, beside.take)
    if not beside.buffers and (writer is None or len(data) < _DEFINITION_BYTES):
        return [data]
    return _laid_out(data, beside.buffers, writer, _DEFINITION_BYTES)


def _refers_to_blobs(parts: list[bytes | memoryview]) -> bool:
    head = parts[0]
    if head[0] != WITH_BUFFERS:
        return False
    (count,) = struct.unpack_from("<4xI", head)
    return any(size & IN_BLOB for size in struct.unpack_from(f"<{count + 1}Q", head, 8))


def _same(pack: bytes, parts: list[bytes | memoryview]) -> bool:
    """Return whether the parts joined equal the pack. The comparison of memory is ten times as fast as a digest."""
    position = 0
    for part in parts:
        if not pack.startswith(part, position):
            return False
        position += len(part)
    return position == len(pack)


class _Definition:
    __slots__ = ("born", "content", "digest", "marks", "packed")

    def __init__(self, born: str, digest: str, content: str, marks: set[str]) -> None:
        self.born = born
        self.digest = digest
        self.content = content
        """The digest of all that the class has at present, with its state."""
        self.marks = marks
        """The keys of the objects in it that are compared by identity."""
        self.packed: bytes | None = None


def _definition(cls: type) -> _Definition:
    entry = _classes.get(cls)
    if entry is not None and entry.guards is not None and hold(entry.guards):
        known: _Definition = entry.value
        return known
    digester = Digester()
    content = digester.digest(cls)
    if entry is not None and entry.value.content == content and entry.value.marks == digester.marks:
        made: _Definition = entry.value
    else:
        made = _Definition(*_digests_of(cls, content, digester), content, digester.marks)
    _classes.put(cls, digester.guards if digester.sure else None, made)
    return made


def _digests_of(cls: type, content: str, digester: Digester) -> tuple[str, str]:
    """Return the digests by which a class is known; digester: has gone through it."""
    arrived = digests_on_arrival(cls)
    if arrived is not None:
        # On an engine it stays the class that was sent, whatever tasks have changed in it.
        return (arrived[0], content) if build.is_own_side() else arrived
    has_state = digester.has_state
    born = Digester(with_state=False).digest(cls) if has_state else content
    note_original(cls, born)
    # A program that is run again begins with a state of its own, and with other objects to compare by identity.
    own = [*sorted(digester.marks), *([_SESSION] if has_state else [])]
    return born, _joined(born, *own) if own else born


def _joined(*digests: str) -> str:
    return hashlib.blake2b("".join(digests).encode(), digest_size=20).hexdigest()


def class_digests(cls: type) -> tuple[str, str, str]:
    """Return (the digest of the class when it was defined, that by which engines know it, that of all it has now)."""
    definition = _definition(cls)
    return definition.born, definition.digest, definition.content


def packed_class(cls: type) -> tuple[str, str, bytes]:
    """Return the two digests of the class, and its definition as a pickle of its own."""
    definition = _definition(cls)
    if definition.packed is None:
        definition.packed = dumps_inline(cls)
    return definition.born, definition.digest, definition.packed


Pickler.class_digests = staticmethod(class_digests)
Pickler.packed_class = staticmethod(packed_class)
