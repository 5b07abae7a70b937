"""The histogram of an array that is spread over engines."""

import numpy


def phistogram(rc, a, bins=10, rng=None, normed=False):
    nengines = len(rc)
    rc.push(dict(bins=bins, rng=rng))
    rc.execute("import numpy")
    rc.execute("hist, lower_edges = numpy.histogram(%s, bins, rng)" % a)
    lower_edges = rc.pull("lower_edges", targets=0)
    hist_array = rc.gather("hist")
    hist_array.shape = (nengines, -1)
    total_hist = numpy.sum(hist_array, 0)
    if normed:
        total_hist = total_hist/numpy.sum(total_hist, dtype=float)
    return total_hist, lower_edges


if __name__ == "__main__":
    from ipytaskfarm import client

    rc = client.MultiEngineClient()
    data = numpy.linspace(0.0, 1.0, 1001)**2
    rc.scatter("data", data)
    hist, edges = phistogram(rc, "data", 8, (0.0, 1.0))
    expected, expected_edges = numpy.histogram(data, 8, (0.0, 1.0))
    print("Histogram: ", hist.tolist())
    print("As here: ", bool((hist == expected).all()), bool((edges[0] == expected_edges).all()))
    print("Normed: %.3f" % phistogram(rc, "data", 8, (0.0, 1.0), True)[0].sum())
