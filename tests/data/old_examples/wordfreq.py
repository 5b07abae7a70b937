"""How often each word is in a text; the parallel version runs this file on all engines."""


def wordfreq(text):
    freqs = {}
    for word in text.split():
        lword = word.lower()
        freqs[lword] = freqs.get(lword, 0) + 1
    return freqs


def print_wordfreq(freqs, n=10):
    words, counts = freqs.keys(), freqs.values()
    items = sorted(zip(counts, words), reverse=True)
    for (count, word) in items[:n]:
        print(word, count)
