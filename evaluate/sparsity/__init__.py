"""What was pruned: zeros, N:M patterns, blocks, rows and columns, from the stored weights."""

from prunescope.evaluate.sparsity.measure import (
    Measurement,
    WeightHashes,
    hash_weights,
    measure,
    summarize,
)

__all__ = ["Measurement", "WeightHashes", "hash_weights", "measure", "summarize"]
