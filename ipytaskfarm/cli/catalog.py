"""The subcommands: `COMMANDS` has the module of each, without importing any."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("ipytaskfarm.cli.start.Start", "start a farm, or resume one"),
    "stop": ("ipytaskfarm.cli.stop.Stop", "stop a farm; nothing that was accepted is lost"),
    "list": ("ipytaskfarm.cli.farms.List", "the farms of this user"),
    "status": ("ipytaskfarm.cli.status.Status", "one farm: its engines and tasks"),
    "engines": ("ipytaskfarm.cli.engines.Engines", "list, add or remove engines"),
    "agents": ("ipytaskfarm.cli.agents.RunAgents", "list, add or remove agents on other machines"),
    "tasks": ("ipytaskfarm.cli.status.Tasks", "a table of tasks"),
    "explain": ("ipytaskfarm.cli.status.Explain", "why a task is where it is"),
    "jobs": ("ipytaskfarm.cli.jobs.Jobs", "the jobs, or one with its tasks"),
    "history": ("ipytaskfarm.cli.history.History", "what happened to tasks, and when"),
    "logs": ("ipytaskfarm.cli.logs.Logs", "show or follow a log, or all that speaks of a task"),
    "abort": ("ipytaskfarm.cli.task_actions.Abort", "abort tasks"),
    "retry": ("ipytaskfarm.cli.task_actions.Retry", "hand failed tasks in again"),
    "restart": ("ipytaskfarm.cli.task_actions.Restart", "hand ended tasks in again, failed or not"),
    "remove": ("ipytaskfarm.cli.task_actions.Remove", "forget ended tasks and their results"),
    "mark-done": ("ipytaskfarm.cli.task_actions.MarkDone", "let tasks have succeeded, with a result from outside"),
    "mark-failed": ("ipytaskfarm.cli.task_actions.MarkFailed", "let a run, or a result, count as failed"),
    "pause": ("ipytaskfarm.cli.pause.Pause", "start no further tasks, of the farm or a job"),
    "resume": ("ipytaskfarm.cli.pause.Resume", "go on after a pause, or after start --hold"),
    "drain": ("ipytaskfarm.cli.pause.Drain", "give a node's engines nothing more"),
    "session": ("ipytaskfarm.cli.session.SessionFiles", "save engines' names to files, and restore them"),
    "keys": ("ipytaskfarm.cli.keys.Keys", "who may speak with a farm: list, add, rotate, revoke"),
    "doctor": ("ipytaskfarm.cli.doctor.Doctor", "what could keep a farm from working, and what to do"),
    "clean": ("ipytaskfarm.cli.farms.Clean", "forget final results, remove what a stopped farm left"),
    "backup": ("ipytaskfarm.cli.store.Backup", "copy a farm's store, running or not"),
    "check": ("ipytaskfarm.cli.store.Check", "look through a farm's store, running or not"),
    "compact": ("ipytaskfarm.cli.store.Compact", "give room that was freed in the store back to the disk"),
    "replay": ("ipytaskfarm.cli.store.Replay", "play the tape of a controller again"),
    "demo": ("ipytaskfarm.cli.demo.Demo", "see a temporary farm at work"),
    "controller": ("ipytaskfarm.cli.processes.RunController", "run a controller alone (for supervisors)"),
    "agent": ("ipytaskfarm.cli.processes.RunAgent", "run an agent alone (for supervisors)"),
    "version": ("ipytaskfarm.cli.processes.Version", "the versions that matter"),
}
"""name -> (the application, one line of help), in the order in which ``--help`` shows them."""
