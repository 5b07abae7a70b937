"""The zygote as Jupyter sees it: a kernel provisioner.

It is an entry point (``jupyter_client.kernel_provisioners``, ``ipytaskfarm-zygote``), so a kernelspec may name it in
its metadata, and any `KernelManager` then starts plain kernels in a tenth of a second::

    "metadata": {"kernel_provisioner": {"provisioner_name": "ipytaskfarm-zygote"}}

Such kernels come from a zygote of that process's own, made with the first of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ..core.failure_values import FAILURE_VALUES
from ..system.flight_recorder import Recorder
from .reaping import Marks, reap
from .zygote import Child, Exit, Zygote
from .zygote_process import OUTPUT, spawn_zygote


class ZygoteProvisioner(KernelProvisionerBase):
    """One kernel, forked by a zygote."""

    child: Child | None = None
    _request: dict[str, Any] | None = None
    _own_folder: Path | None = None
    _own_zygote: ClassVar[tuple[asyncio.AbstractEventLoop, Zygote, Path] | None] = None

    @property
    def has_process(self) -> bool:
        """Return whether a kernel was launched and not yet waited for."""
        return self.child is not None

    async def poll(self) -> int | None:
        """Return the exit code (negative: the signal), like `subprocess.Popen.poll`.  None: the kernel runs."""
        if self.child is None:
            return 0
        return _returncode(self.child.exit.result()) if self.child.exit.done() else None

    async def wait(self) -> int | None:
        """Wait until the kernel has ended, and return its exit code."""
        if self.child is None:
            return 0
        # shield: Jupyter waits with time-outs, and the end must still be recorded after one.
        code = _returncode(await asyncio.shield(self.child.exit))
        self.child = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel's process."""
        if self.child is not None:
            self.child.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGTERM)

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Write the connection file, if a kernel manager of Jupyter's asks."""
        manager = self.parent
        if manager is not None:
            manager.write_connection_file()
            self.connection_info = manager.get_connection_info()
            kwargs.pop("extra_arguments", None)
            kwargs["connection_file"] = manager.connection_file
        return await super().pre_launch(cmd=["(forked by a zygote)"], **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel from Jupyter's arguments (connection_file, env, cwd). `cmd` is not executed."""
        self._request = self._request_of(**kwargs)
        zygote = await self._process_zygote()
        self.child = await zygote.fork(self._request)
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the kernel's files, and end the processes that it left behind."""
        if self._own_folder is not None and self._request is not None and not restart:
            marks = Marks(self._request["engine"], Path(self._request["recorder"]))
            await asyncio.to_thread(reap, marks)
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return the facts about the kernel for people: another process cannot adopt a zygote's child."""
        info = await super().get_provisioner_info()
        info["pid"] = self.child.pid if self.child is not None else None
        return info

    def _request_of(
        self, connection_file: str, env: dict[str, str] | None = None, cwd: str | None = None, **_: Any
    ) -> dict[str, Any]:
        if self._own_folder is None:
            self._own_folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-kernel-"))
        folder, engine = self._own_folder, f"{self.kernel_id}.0"
        recorder = folder / "engine-0.rec"
        recorder.unlink(missing_ok=True)
        Recorder.create(recorder, engine, 0).close()
        return {
            "engine": engine,
            "id": 0,
            "folder": str(folder),
            "connection_file": connection_file,
            "recorder": str(recorder),
            "output": str(folder / "engine-0.out"),
            "stack": str(folder / "engine-0.stack"),
            "env": env or {},
            "cwd": cwd or os.getcwd(),
        }

    @classmethod
    async def _process_zygote(cls) -> Zygote:
        loop = asyncio.get_running_loop()
        own = cls._own_zygote
        if own is None or own[0] is not loop or not own[1].alive:
            folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-zygote-"))
            started = spawn_zygote("", folder / OUTPUT, failure_values=FAILURE_VALUES[0])
            own = cls._own_zygote = (loop, Zygote(started, folder / OUTPUT), folder)
        return own[1]

    @classmethod
    async def close_process_zygote(cls) -> None:
        """End this process's own zygote, if there is one, with its kernels.  It also ends with the process."""
        own, cls._own_zygote = cls._own_zygote, None
        if own is not None:
            if own[0] is asyncio.get_running_loop():
                await own[1].close()
            shutil.rmtree(own[2], ignore_errors=True)


def _returncode(how: Exit) -> int:
    if how.status is None:
        return -9
    return os.waitstatus_to_exitcode(how.status)
