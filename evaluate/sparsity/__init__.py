"""What was pruned: zeros, N:M patterns, blocks, rows and columns, from the stored weights."""

from prunescope.evaluate.sparsity.scan import (
    Measurement,
    hash_weights,
    measure,
    summarize,
)

__all__ = ["Measurement", "hash_weights", "measure", "summarize"]
