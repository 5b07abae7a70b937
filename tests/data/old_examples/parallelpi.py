"""Pairs of digits in several files: one file on one engine, then one on each engine."""

from timeit import default_timer as clock

from ipytaskfarm import client
from pidigits import *

filestring = "pi-%(i)02dof04.txt"
files = [filestring % {"i": i} for i in range(1, 5)]

mec = client.MultiEngineClient()
mec.run("pidigits.py")

mapper = mec.mapper(targets=0)
t1 = clock()
freqs_one = mapper.map(compute_two_digit_freqs, files[:1])[0]
t2 = clock()
print("Digits per second (1 engine): ", 1.0e4/(t2-t1))

t1 = clock()
freqs_all = mec.map(compute_two_digit_freqs, files[:len(mec)])
freqs_sum = reduce_freqs(freqs_all)
t2 = clock()
print("Digits per second (4 engines): ", 4.0e4/(t2-t1))

print("Pairs in one file: ", freqs_one.sum(), "first: ", bool((freqs_one == freqs_all[0]).all()))
print("Pairs in all files: ", freqs_sum.sum())
