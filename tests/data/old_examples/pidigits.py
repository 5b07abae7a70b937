"""Count sequences of digits in files of digits; the driver runs this file on all engines."""

import numpy as np


def txt_file_to_digits(filename, the_type=str):
    with open(filename, "r") as f:
        for line in f.readlines():
            for c in line:
                if c != "\n" and c != " ":
                    yield the_type(c)


def compute_two_digit_freqs(filename):
    d = txt_file_to_digits(filename)
    freqs = two_digit_freqs(d)
    return freqs


def reduce_freqs(freqlist):
    allfreqs = np.zeros_like(freqlist[0])
    for f in freqlist:
        allfreqs += f
    return allfreqs


def two_digit_freqs(digits, normalize=False):
    freqs = np.zeros(100, dtype="i4")
    last = next(digits)
    for this in digits:
        freqs[int(last + this)] += 1
        last = this
    if normalize:
        freqs = freqs/freqs.sum()
    return freqs
