"""Merge sorted sequences that live on engines, item by item."""

import heapq

from ipytaskfarm.errors import CompositeError


def mergesort(list_of_lists, key=None):
    heap = []
    for i, itr in enumerate(iter(pl) for pl in list_of_lists):
        try:
            item = next(itr)
            heap.append((key(item) if key else item, i, item, itr))
        except StopIteration:
            pass
    heapq.heapify(heap)
    while heap:
        _, idx, item, itr = heap[0]
        yield item
        try:
            item = next(itr)
            heapq.heapreplace(heap, (key(item) if key else item, idx, item, itr))
        except StopIteration:
            heapq.heappop(heap)


def remote_iterator(rc, engine, name):
    """Iterate over an object that lives on an engine."""
    iter_name = "_%s_rmt_iter_" % name
    rc.execute("%s = iter(%s)" % (iter_name, name), targets=engine)
    tpl = "_tmp = next(%s)" % iter_name
    while True:
        try:
            rc.execute(tpl, targets=engine)
            result = rc.pull("_tmp", targets=engine)[0]
        except CompositeError as e:
            try:
                e.raise_exception()
            except StopIteration:  # Python 3: a generator must not let it out
                return
        else:
            yield result


if __name__ == "__main__":
    from ipytaskfarm import client

    ipc = client.MultiEngineClient()
    print("Engine IDs:", ipc.get_ids())

    a0 = range(5, 20)
    a1 = range(10)
    a2 = range(15, 25)

    ipc.push(dict(a=a0), targets=0)
    ipc.push(dict(a=a1), targets=1)
    ipc.push(dict(a=a2), targets=2)

    aa0 = remote_iterator(ipc, 0, "a")
    aa1 = remote_iterator(ipc, 1, "a")
    aa2 = remote_iterator(ipc, 2, "a")

    print("Merge the local datasets:")
    print(list(mergesort([a0, a1, a2])))

    print("Locally merge the remote sets:")
    print(list(mergesort([aa0, aa1, aa2])))
