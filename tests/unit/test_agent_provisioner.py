"""Jupyter's own kernel manager starting plain kernels through a zygote."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from ipytaskfarm.agent.provisioner import ZygoteProvisioner
from tests.conftest import Dirs

NAME, GROUP = "ipytaskfarm-zygote", "jupyter_client.kernel_provisioners"
SPEC = KernelSpec(
    argv=["(not used)"],
    display_name="from a zygote",
    language="python",
    metadata={"kernel_provisioner": {"provisioner_name": NAME}},
)


@asynccontextmanager
async def kernel(folder: Path) -> AsyncIterator[AsyncKernelManager]:
    # As the installed entry point does, and also in a checkout that was never installed.
    point = EntryPoint(NAME, "ipytaskfarm.agent.provisioner:ZygoteProvisioner", GROUP)
    KernelProvisionerFactory.instance().provisioners[NAME] = point
    manager = AsyncKernelManager(
        kernel_id=uuid.uuid4().hex,
        transport="ipc",
        ip=str(folder / "kernel"),
        connection_file=str(folder / "kernel.json"),
        shutdown_wait_time=2.0,
    )
    manager._kernel_spec = SPEC
    began_s = time.monotonic()
    await manager.start_kernel()
    print(f"start_kernel: {(time.monotonic() - began_s) * 1e3:.0f} ms")
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)
        await ZygoteProvisioner.close_process_zygote()


async def value_of(manager: AsyncKernelManager, expression: str) -> str:
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        reply = await client.execute("", user_expressions={"value": expression}, reply=True, timeout=60)
        return str(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])
    finally:
        client.stop_channels()


def test_a_kernel_manager_starts_restarts_and_ends_a_kernel(farm_dirs: Dirs) -> None:
    async def body() -> None:
        async with kernel(farm_dirs.sockets) as manager:
            pid = int(await value_of(manager, "__import__('os').getpid()"))
            assert isinstance(manager.provisioner, ZygoteProvisioner)
            assert (await manager.provisioner.get_provisioner_info())["pid"] == pid
            assert await manager.is_alive()
            await manager.restart_kernel(now=True)
            assert int(await value_of(manager, "__import__('os').getpid()")) != pid

    asyncio.run(body())


def test_how_a_kernel_ended_is_told(farm_dirs: Dirs) -> None:
    async def body() -> None:
        async with kernel(farm_dirs.sockets) as manager:
            provisioner = manager.provisioner
            assert provisioner is not None
            assert await provisioner.poll() is None
            await manager.signal_kernel(signal.SIGSEGV)
            assert await asyncio.wait_for(provisioner.wait(), 60) == -signal.SIGSEGV
            assert not await manager.is_alive()

    asyncio.run(body())


def test_nothing_of_a_kernel_stays(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(farm_dirs.work))

    async def body() -> None:
        async with kernel(farm_dirs.sockets) as manager:
            await value_of(manager, "1")
            assert os.listdir(farm_dirs.work)

    asyncio.run(body())
    assert os.listdir(farm_dirs.work) == []
