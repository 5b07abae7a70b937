"""What ``ps`` calls our processes."""

from __future__ import annotations


def name_process(title: str) -> None:
    """``ps`` shows the title; ``top`` and the kernel know us by one word.

    Slurm that finds a job's processes by /proc (its plugin proctrack/linuxproc) passes over those whose short name has
    a blank in it, and would never end them.
    """
    import setproctitle  # not for everybody who imports us: engines do so before they are forked

    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.split()[0])
