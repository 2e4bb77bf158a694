"""The paper's section III-C as slow loops over Python numbers: the second implementation that the engine must equal.

Everything is exact where the engine is exact: similarities are whole multiples of 2^-23, ranks are fractions, the sums
behind centroid distances are whole numbers. The distance itself takes three roundings to float32, as in the engine, and the
last steps (means of indices) are float64.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

MASK = (1 << 64) - 1
STEPS = 1 << 23


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(*counters):
    state = 0
    for c in counters:
        state = mix(((state ^ (c & MASK)) + 0x9E3779B97F4A7C15) & MASK)
    return state


def key(a, b):
    """Cosine of two embeddings, as a whole multiple of 2^-23."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norms = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return max(-STEPS, min(STEPS, round(dot / norms * STEPS)))


def kmeans(vectors, identity_row, n_clusters, seed, repeat=0):
    """Lloyd from random images, with distances to the mean of each cluster's members as exact fractions."""
    n = len(vectors)
    coarse = 1  # the largest power of two with which n keys of up to 2^23 / coarse sum to no more than 2^24
    while n * STEPS // coarse > 1 << 24:
        coarse *= 2
    gram = [[round(Fraction(key(a, b), coarse)) for b in vectors] for a in vectors]  # halves to even
    order = sorted(range(n), key=lambda i: (draw(seed, 0x1217, repeat, identity_row, i), i))
    members = [[i] for i in order[: min(n_clusters, n)]]
    assigned = None
    for _ in range(50):
        new = []
        for i in range(n):
            best, best_distance = None, None
            for c, ms in enumerate(members):
                if not ms:
                    continue
                m = len(ms)
                within = np.float32(sum(gram[a][b] for a in ms for b in ms) / (m * m))
                distance = np.float32(sum(gram[i][j] for j in ms)) * np.float32(-2 / m) + within
                if best_distance is None or distance < best_distance:
                    best, best_distance = c, distance
            new.append(best)
        if new == assigned:
            break
        assigned = new
        members = [[i for i in range(n) if assigned[i] == c] for c in range(len(members))]
    used = sorted(set(assigned))
    return [used.index(c) for c in assigned]


def draw_pairs(clusters, identity_row, seed, repeat):
    """(image, mate) of one identity: each image with one image of every other cluster."""
    pairs = []
    for i, own in enumerate(clusters):
        word = draw(seed, 0x9A17, repeat, identity_row, i) >> 32
        for other in range(max(clusters) + 1):
            if other == own:
                continue
            members = [j for j, c in enumerate(clusters) if c == other]
            x = (word + other * 0x9E3779B9) & 0xFFFFFFFF
            x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
            x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
            fraction = (x ^ (x >> 15)) >> 8  # of 2^24
            pairs.append((i, members[int(np.float32(fraction) * np.float32(len(members) / 2**24))]))
    return pairs


def mean_places(values):
    """Place of each value in the ascending order; ties share the mean of their places."""
    ordered = sorted(values)
    return [Fraction(ordered.index(v) * 2 + ordered.count(v) - 1, 2) for v in values]


def optimize(prior, repeats, theta, scale=1.0):
    """Equations 2 and 3 on given pairs: repeats of [(image, mate, similarity)]; returns scores, indices, means, counts."""
    n = len(prior)
    by_score = sorted(range(n), key=lambda i: (prior[i], i))
    place = {i: k for k, i in enumerate(by_score)}
    collected_means = {i: [] for i in range(n)}
    owned = [0] * n
    shift = [0.0] * n
    for pairs in repeats:
        places = mean_places([s for _, _, s in pairs])
        credit = {}
        for (a, b, _), p in zip(pairs, places, strict=True):
            owner = a if place[a] < place[b] else b
            credit.setdefault(owner, []).append(p)
        for i, got in credit.items():
            mean = float(sum(got) / len(got))
            collected_means[i].append(mean)
            owned[i] += len(got)
            shift[i] += mean * scale - place[i]
    index = [place[i] + theta * (shift[i] / max(len(repeats), 1)) for i in range(n)]
    by_index = sorted(range(n), key=lambda i: (index[i], place[i]))
    scores = [None] * n
    for value, i in zip(sorted(prior), by_index, strict=True):
        scores[i] = value
    means = [sum(m) / len(m) if m else math.nan for m in collected_means.values()]
    return scores, index, means, owned


def whole(embeddings, identities, prior, n_clusters, theta, n_repeats, seed):
    """From embeddings to optimized scores; identities is a list of lists of image rows."""
    repeats = []
    clusters = [kmeans([embeddings[i] for i in rows], k, n_clusters, seed) for k, rows in enumerate(identities)]
    for r in range(n_repeats):
        pairs = []
        for k, rows in enumerate(identities):
            for i, j in draw_pairs(clusters[k], k, seed, r):
                pairs.append((rows[i], rows[j], key(embeddings[rows[i]], embeddings[rows[j]])))
        repeats.append(pairs)
    return optimize(prior, repeats, theta)
