#!/usr/bin/env python
"""How well sleeping tasks of random length are spread: ``task_profiler.py -n 128 -t 0.01 -T 1.0``."""

import random
import time
from optparse import OptionParser

from ipytaskfarm import client


def main():
    parser = OptionParser()
    parser.set_defaults(n=100)
    parser.set_defaults(tmin=1)
    parser.set_defaults(tmax=60)
    parser.add_option("-n", type="int", dest="n", help="the number of tasks to run")
    parser.add_option("-t", type="float", dest="tmin", help="the minimum task length in seconds")
    parser.add_option("-T", type="float", dest="tmax", help="the maximum task length in seconds")
    (opts, args) = parser.parse_args()
    assert opts.tmax >= opts.tmin, "tmax must not be smaller than tmin"

    rc = client.MultiEngineClient()
    tc = client.TaskClient()
    print(tc.task_controller)
    rc.block = True
    nengines = len(rc.get_ids())
    rc.execute("import time")

    times = [random.random() * (opts.tmax - opts.tmin) + opts.tmin for i in range(opts.n)]
    tasks = [client.StringTask("time.sleep(%f)" % t) for t in times]
    stime = sum(times)

    print("executing %i tasks, totalling %.1f secs on %i engines" % (opts.n, stime, nengines))
    start = time.time()
    taskids = [tc.run(t) for t in tasks]
    tc.barrier(taskids)
    stop = time.time()

    ptime = stop - start
    scale = stime / ptime
    print("executed %.1f secs in %.1f secs" % (stime, ptime))
    print("%.3fx parallel performance on %i engines" % (scale, nengines))
    print("%.1f%% of theoretical max" % (100 * scale / nengines))


if __name__ == "__main__":
    main()
