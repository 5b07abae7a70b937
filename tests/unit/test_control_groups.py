"""The limits of control groups of both versions, read from files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskfarm.system.control_groups import MemoryRoom, core_quotas, memory_rooms, oom_kills, process_counts

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "fs"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.write_text("5:memory:/job/step\n4:cpu,cpuacct:/job/step\n3:pids:/job/step\n1:name=systemd:/\n0::/user/shell\n")
    return path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_cores(root: Path, own: Path) -> None:
    write(root, cpu__max="max 100000")
    write(root / "user", cpu__max="250000 100000")
    write(root / "user/shell", cpu__max="400000 100000")
    write(root / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    write(root / "cpu/job", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert sorted(core_quotas(root, own)) == [0.5, 2.5, 4.0]


def test_memory_of_version_2(root: Path, own: Path) -> None:
    write(root / "user/shell", memory__max="max", memory__current=1, memory__stat="")
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\nslab_reclaimable {GIB // 8}\nshmem 7"
    write(root / "user", memory__max=2 * GIB, memory__current=GIB, memory__stat=stat)
    assert list(memory_rooms(root, own)) == [MemoryRoom(GIB + 5 * GIB // 8, 2 * GIB)]


def test_memory_of_version_1(root: Path, own: Path) -> None:
    stat = f"inactive_file 9\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}"
    limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
    write(root / "memory", **{limit: 9223372036854771712, used: 3 * GIB, "memory.stat": stat})
    write(root / "memory/job", **{limit: 4 * GIB, used: 3 * GIB, "memory.stat": stat})
    write(root / "memory/job/step", **{limit: 2 * GIB, used: 3 * GIB, "memory.stat": ""})
    assert list(memory_rooms(root, own)) == [MemoryRoom(0, 2 * GIB), MemoryRoom(3 * GIB, 4 * GIB)]


def test_what_the_kernel_has_ended_for_lack_of_memory(root: Path, own: Path) -> None:
    assert oom_kills(root, own) == 0, "unknown"
    write(root / "user", memory__events="low 0\noom 5\noom_kill 3")
    assert oom_kills(root, own) == 3
    write(root / "memory/job/step", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2")
    assert oom_kills(root, own) == 2


def test_processes(root: Path, own: Path) -> None:
    write(root / "pids/job", pids__max=20, pids__current=7)
    write(root / "pids/job/step", pids__max="max", pids__current=7)
    write(root / "user", pids__max=30, pids__current=7)
    assert sorted(process_counts(root, own)) == [(20, 7), (30, 7)]


def test_a_path_of_the_host_in_a_container(root: Path, own: Path) -> None:
    """The kernel names the path that the group has on the host; in the container its files are at the root."""
    write(root, memory__max=GIB, memory__current=GIB // 2, memory__stat="", cpu__max="200000 100000")
    assert list(memory_rooms(root, own)) == [MemoryRoom(GIB // 2, GIB)]
    assert list(core_quotas(root, own)) == [2.0]


def test_no_control_groups(root: Path, tmp_path: Path) -> None:
    assert list(memory_rooms(root, tmp_path / "none")) == []
