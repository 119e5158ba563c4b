"""Patches of a picture: what hangs together."""

from __future__ import annotations

import numpy as np


def label_patches(mask: np.ndarray) -> np.ndarray:
    """Numbers the patches of a mask: pixels that touch one another by a side or a corner are of one patch.

    mask: bool H W. Returns int64 H W: 0 outside the mask, then 1, 2 ... in the order in which patches begin, by rows.
    Runs of pixels in a row are joined with those that they touch in the row above (Rosenfeld & Pfaltz 1966).
    """
    labels = np.zeros(mask.shape, dtype=np.int64)
    parent = [0]

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    above: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        here: list[tuple[int, int, int]] = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            touched = [root(label) for s, e, label in above if s <= end and start <= e]
            label = min(touched, default=len(parent))
            if not touched:
                parent.append(label)
            for other in touched:
                parent[other] = label
            labels[y, start:end] = label
            here.append((start, end, label))
        above = here
    roots = np.array([root(label) for label in range(len(parent))])
    return np.unique(roots, return_inverse=True)[1].reshape(-1)[labels]
