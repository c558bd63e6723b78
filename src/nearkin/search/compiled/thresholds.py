"""The nearest relevant items of queries, compared in float64."""

from __future__ import annotations

import numpy as np

from nearkin.search.compiled.base import dot, half_tie, jit

SHIFTED = 64  # thresholds of a query that are put in order one by one; more are sorted


@jit
def relevant(q, g, order, start, first, values, terms, own, large):
    """Thresholds of queries that have one label each: the nearest relevant items, less half a tie.

    order, start    gallery items by label, and where each label starts: (G,), (C + 1,)
    first           (B + 1,) where the values of each query go: as many as are kept
    large           labels of more items are passed over
    """
    shift, tie, squares = terms.shift, terms.tie, terms.squares
    left, factors, norms, labels, groups = q.source, q.factor, q.norm, q.code, q.group
    right, factor, norm, half, group = g.source, g.factor, g.norm, g.half, g.group
    scratch = np.empty(large, np.float64)
    for i in range(len(labels)):
        begin, end, found = first[i], first[i], 0
        room, label = first[i + 1] - begin, labels[i]
        if room == 0 or start[label + 1] - start[label] > large:
            continue
        for place in range(start[label], start[label + 1]):
            j = order[place]
            if i + own == j or (len(groups) and groups[i] == group[j]):
                continue
            value = dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
            value -= half_tie(norms[i], norm[j], tie, squares)
            if room > SHIFTED:
                scratch[found] = value
                found += 1
                continue
            if end - begin == room:
                if value <= values[end - 1]:
                    continue
                end -= 1
            at = end
            while at > begin and values[at - 1] < value:
                values[at] = values[at - 1]
                at -= 1
            values[at] = value
            end += 1
        if found:
            ascending = np.sort(scratch[:found])
            for place in range(room):
                values[begin + place] = ascending[found - 1 - place]


@jit
def relevant_counts(labels, groups, group, order, start, own):
    """(B,) int64: how many relevant items each query has; see `relevant`."""
    counts = np.zeros(len(labels), np.int64)
    for i in range(len(labels)):
        for place in range(start[labels[i]], start[labels[i] + 1]):
            j = order[place]
            if i + own != j and (len(groups) == 0 or groups[i] != group[j]):
                counts[i] += 1
    return counts
