"""Count words in four files, one on each engine, and in the whole text here."""

from itertools import repeat

from wordfreq import print_wordfreq, wordfreq


def pwordfreq(rc, text):
    rc.execute("freqs = wordfreq(%s)" % text)
    freqs_list = rc.pull("freqs")
    word_set = set()
    for f in freqs_list:
        word_set.update(f.keys())
    freqs = dict(zip(word_set, repeat(0)))
    for f in freqs_list:
        for word, count in f.items():
            freqs[word] += count
    return freqs


if __name__ == "__main__":
    from ipytaskfarm import client

    ipc = client.MultiEngineClient()
    ipc.run("wordfreq.py")

    print("Serial word frequency count:")
    text = open("davinci.txt").read()
    freqs = wordfreq(text)
    print_wordfreq(freqs, 10)

    print("\nParallel word frequency count:")
    files = ["davinci%i.txt" % i for i in range(4)]
    ipc.scatter("textfile", files)
    ipc.execute("text = open(textfile[0]).read()")
    pfreqs = pwordfreq(ipc, "text")
    print_wordfreq(pfreqs)
    print("Equal: ", freqs == pfreqs)
