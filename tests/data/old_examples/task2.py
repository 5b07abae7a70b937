"""Sixty tasks that sleep, and the queue while they do; the last four are aborted."""

import sys
import time

from ipytaskfarm import client

flush = sys.stdout.flush

tc = client.TaskClient()
mec = client.MultiEngineClient()

mec.execute("import time")

for i in range(24):
    tc.run(client.StringTask("time.sleep(0.05)"))

for i in range(3):
    time.sleep(0.05)
    print("Queue status (verbose=False)")
    print(tc.queue_status())
    flush()

for i in range(24):
    tc.run(client.StringTask("time.sleep(0.05)"))

for i in range(3):
    time.sleep(0.05)
    print("Queue status (verbose=True)")
    print(tc.queue_status(True))
    flush()

for i in range(12):
    tc.run(client.StringTask("time.sleep(0.5)"))

qs = tc.queue_status(True)
sched = qs["scheduled"]

for tid in sched[-4:]:
    tc.abort(tid)

while tc.queue_status()["scheduled"] + tc.queue_status()["pending"]:
    time.sleep(0.1)
print("Aborted:", sched[-4:])
print("Failed:", tc.queue_status(True)["failed"])
print("Queue status at the end:", tc.queue_status())
