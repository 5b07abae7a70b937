"""A task that uses what was pushed to all engines."""

from ipytaskfarm import client

tc = client.TaskClient()
rc = client.MultiEngineClient()

rc.push(dict(d=30))

work = """\
a = 5
b = 10*d
c = a*b*d
"""

t1 = client.StringTask(work, clear_before=False, clear_after=True, pull=["a", "b", "c"])
tid1 = tc.run(t1)
tr1 = tc.get_task_result(tid1, block=True)
tr1.raise_exception()
print("a, b: ", tr1.ns.a, tr1.ns.b)
print("c: ", tr1["c"], tr1.ns["c"])
