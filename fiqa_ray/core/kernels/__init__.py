"""Compiled loops and devices, each under its numpy equivalent. Read `jit.py` first: it says what all kernels do for speed.

jit.py           how loops are compiled and where the code is kept
draws.py         random bits as a function of where they are used
gram.py          equation 1 for all pairs of an identity
kmeans.py        clusters of an identity
mates.py         who is paired with whom, and how similar they are
counting.py      ranks of equation 2 by counting
owners.py        means of equation 2 by pair owner, and equation 3
discard.py       wrong decisions at each discard level
sorting.py       a stable argsort of scores
accelerator.py   gram, kmeans and mates as torch operations
threads.py       one thread for numerics
"""
