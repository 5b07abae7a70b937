"""Eigenvalues of random symmetric matrices; the driver runs this file on all engines."""

import numpy

ra = numpy.random
la = numpy.linalg


def GOE(N):
    m = ra.standard_normal((N, N))
    m += m.T
    return m


def centerEigenvalueDiff(mat):
    N = len(mat)
    evals = numpy.sort(la.eigvals(mat))
    diff = evals[N//2] - evals[N//2-1]
    return diff.real


def ensembleDiffs(num, N):
    diffs = numpy.empty(num)
    for i in range(num):
        mat = GOE(N)
        diffs[i] = centerEigenvalueDiff(mat)
    return diffs


def normalizeDiffs(diffs):
    return diffs/diffs.mean()
