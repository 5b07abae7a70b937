"""A sweep over strike prices and volatilities, one task for each pair."""

import numpy as N

from ipytaskfarm import client
from mcpricer import MCOptionPricer

tc = client.TaskClient()
rc = client.MultiEngineClient()

# The code that all tasks use.
rc.run("mcpricer.py")

# The values that do not change.
rc.push(dict(S=100.0, r=0.05, days=26, paths=2000))

task_string = """\
op = MCOptionPricer(S,K,sigma,r,days,paths)
op.run()
vp, ap, vc, ac = op.vanilla_put, op.asian_put, op.vanilla_call, op.asian_call
"""

K_vals = N.linspace(90.0, 100.0, 5)
sigma_vals = N.linspace(0.0, 0.2, 5)

taskids = []
for K in K_vals:
    for sigma in sigma_vals:
        t = client.StringTask(task_string, push=dict(sigma=sigma, K=K), pull=("vp", "ap", "vc", "ac", "sigma", "K"))
        taskids.append(tc.run(t))

print("Submitted tasks: ", len(taskids))
tc.barrier(taskids)
results = [tc.get_task_result(tid) for tid in taskids]

vc = N.empty(K_vals.shape[0]*sigma_vals.shape[0], dtype="float64")
ac = N.empty(K_vals.shape[0]*sigma_vals.shape[0], dtype="float64")
for i, tr in enumerate(results):
    ns = tr.ns
    vc[i] = ns.vc
    ac[i] = ns.ac
vc.shape = (K_vals.shape[0], sigma_vals.shape[0])
ac.shape = (K_vals.shape[0], sigma_vals.shape[0])

own = MCOptionPricer(100.0, 90.0, 0.0, 0.05, 26, 10)
own.run()
print("Without risk: %.6f %.6f" % (vc[0, 0], own.vanilla_call))
print("Asian calls are cheaper: ", bool((ac < vc).all()))
print("Lower strikes cost more: ", bool((N.diff(vc[:, 0]) < 0).all()))
