"""Tasks that reject engines until two of them have what the tasks need."""

from ipytaskfarm import client
from ipytaskfarm.errors import TaskRejectError

mec = client.MultiEngineClient()
tc = client.TaskClient()

mec.execute("from ipytaskfarm.errors import TaskRejectError")
mec.execute("run = False")


def map_task():
    if not run:
        raise TaskRejectError("task dependency not met")
    return 3.0e8


task_ids = []

for i in range(10):
    task = client.MapTask(map_task, retries=20)
    task_ids.append(tc.run(task, block=False))

# What the user typed next.
print("Ended before: ", [tid for tid in task_ids if tc.get_task_result(tid) is not None])
mec.execute("run=True", targets=[0, 1])
tc.barrier(task_ids)
print([tc.get_task_result(tid) for tid in task_ids])
print("On engines: ", sorted({tc.get_task_result(tid, raw=False).engineid for tid in task_ids} - {0, 1}))
