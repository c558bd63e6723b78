"""Soft histograms of similarities, compiled by numba (extra `fast`): see `passes`, and losses over
histograms for the plain form."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np

from nearkin import passes
from nearkin.jit import jit_of
from nearkin.passes import NOTHING, ONE, OPTIONS, TWO, F

jit = jit_of([Path(__file__), Path(passes.__file__)], **OPTIONS)
_plain = numba.njit(**OPTIONS)


@_plain
def _cells(row, bins, cell, share, hidden):
    """The cell of each similarity of a row, and its share at the node before it: see
    losses.histograms. NaN stays in the share; -inf is not counted where it hides a pair."""
    half, last = F(bins / 2), F(bins + 2)
    for j in range(len(row)):
        place = row[j] * -half + (half + TWO)
        place = last if place >= last else place
        place = ONE if place < ONE else place
        before = np.uint32(place if place == place else last)
        share[j] = ONE - (place - F(before))
        cell[j] = np.uint32(0) if hidden and row[j] == NOTHING else before


@_plain
def _count_cells(cell, share, near, held):
    for j in range(len(cell)):
        near[cell[j]] += share[j]
        held[cell[j]] += 1.0


@_plain
def _at_nodes(near, held):
    """How many stand at each node, from the shares and the numbers in the cells."""
    nodes = np.empty(len(near) - 2)
    for j in range(len(nodes)):
        nodes[j] = near[j + 2] + held[j + 1] - (near[j + 1] if j else 0.0)
    return nodes


@jit
def overlap(s, kept, skip, columns, count, bins, pairs, x, value):
    """Into value (): the share of the pairs of one of the own and one of kept in which the own is
    no nearer, by soft histograms.

    s         (B, R) the similarities; `kept` is s, or x, which holds them with -inf where a pair is
              not counted and skip (B, 0) says nothing
    columns   (B, P) of the own in s; the first count (B,) of each row are meant
    pairs     how many own times how many kept there are, at least 1
    """
    own, width = columns.shape[1], s.shape[1]
    near, held = np.zeros(bins + 3), np.zeros(bins + 3)
    values, owns = np.empty(own, np.float32), np.empty((len(s), own), np.uint32)
    cell, share = np.empty(max(own, width), np.uint32), np.empty(max(own, width), np.float32)
    for i in range(len(s)):
        for p in range(count[i]):
            values[p] = s[i, columns[i, p]]
        _cells(values[: count[i]], bins, owns[i], share, False)
        _count_cells(owns[i, : count[i]], share, near, held)
    attracting = _at_nodes(near, held)
    push, pull = np.zeros(bins + 3, np.float32), np.zeros(bins + 3, np.float32)
    scale = bins / 2 / pairs
    for j in range(bins):
        push[j + 2] = attracting[j] * scale
    near[:] = 0.0
    held[:] = 0.0
    for i in range(len(x)):
        row = x[i]
        _cells(kept[i], bins, cell, share, skip.shape[1] == 0)
        for k in range(skip.shape[1]):
            cell[skip[i, k]] = np.uint32(0)
        _count_cells(cell[:width], share, near, held)
        for j in range(width):
            row[j] = push[cell[j]]
    repelling = _at_nodes(near, held)
    before, total = 0.0, 0.0
    for j in range(bins + 1):
        before += repelling[j]
        total += before * attracting[j]
    for j in range(bins):
        pull[j + 2] = -repelling[j + 1] * scale
    for i in range(len(x)):
        for p in range(count[i]):
            x[i, columns[i, p]] += pull[owns[i, p]]
    value[()] = total / pairs
