"""Naive references of batches, retrieval and metrics: as plain as possible, one example at a time, in float64."""

import math

import numpy as np

# --- data: one example at a time -------------------------------------------------------------------------------------


def example(log, user, position, *, length, session_length, session_gap):
    """One row of a batch as plain lists, by the definitions in types.py."""
    rows = range(log.offsets[user], log.offsets[user] + position)
    items, times = [int(log.items[r]) for r in rows], [int(log.times[r]) for r in rows]
    target = log.offsets[user] + position
    session = 0
    for back in range(1, min(session_length, len(items)) + 1):
        if session_gap and back > 1 and times[-back + 1] - times[-back] > session_gap:
            break
        session += 1
    ages = [min(int(log.times[target]) - t, 2**31 - 1) for t in times]
    return {
        "history": ([0] * length + items)[-length:],
        "age": ([0] * length + ages)[-length:],
        "target": int(log.items[target]),
        "session_length": session,
        "seen": items,
    }


# --- retrieval: the whole score matrix in float64 ---------------------------------------------------------------------


def score_matrix(vectors, mask, table, n_items, merge, excluded=None):
    """Merged scores float64 [B, n_items + 1]; column 0 (padding) is -inf. vectors [B, M, U], mask [B, M].

    The softmaxes that are merged are over the items that are not excluded.
    """
    scores = np.einsum("bmu,nu->bmn", vectors.astype(np.float64), table[: n_items + 1].astype(np.float64))
    rows = []
    for b, (row, valid) in enumerate(zip(scores, mask, strict=True)):
        row = row[valid][:, 1:]
        if merge == "softmax_mean":
            exp = np.exp(row - row.max(axis=1, keepdims=True))
            left = np.array([excluded is None or i not in excluded[b] for i in range(1, n_items + 1)])
            merged = np.log((exp / exp[:, left].sum(axis=1, keepdims=True)).mean(axis=0))
        elif merge == "logsumexp":
            merged = np.log(np.exp(row - row.max()).mean(axis=0)) + row.max()
        else:
            merged = row.max(axis=0)
        rows.append(np.concatenate([[-np.inf], merged]))
    return np.stack(rows)


def ranks(scores, targets, excluded=None):
    """1 + greater + ties / 2 among the other items that are not excluded; a target that is, comes behind all items."""
    result = []
    for b, (row, target) in enumerate(zip(scores, targets, strict=True)):
        out = set() if excluded is None else set(excluded[b].tolist())
        others = np.array([row[i] for i in range(1, len(row)) if i != target and i not in out])
        rank = 1 + (others > row[target]).sum() + (others == row[target]).sum() / 2
        result.append(len(row) if target in out else rank)
    return np.array(result)


def top_k(scores, k, excluded=None):
    """(scores, ids) of the k best, the smaller id first on ties, filled up with (-inf, 0)."""
    best, ids = np.full((len(scores), k), -np.inf), np.zeros((len(scores), k), int)
    for b, row in enumerate(scores):
        out = set() if excluded is None else set(excluded[b].tolist())
        order = sorted((i for i in range(1, len(row)) if i not in out), key=lambda i: (-row[i], i))[:k]
        best[b, : len(order)], ids[b, : len(order)] = row[order], order
    return best, ids


# --- metrics: one target at a time ------------------------------------------------------------------------------------


def ranking_metrics(all_ranks, k):
    """(recall, mrr, ndcg) at k."""
    recall = mrr = ndcg = 0.0
    for rank in all_ranks:
        if rank <= k:
            recall, mrr, ndcg = recall + 1, mrr + 1 / rank, ndcg + 1 / math.log2(rank + 1)
    return recall / len(all_ranks), mrr / len(all_ranks), ndcg / len(all_ranks)
