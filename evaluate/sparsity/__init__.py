"""What was pruned: zeros, N:M patterns, blocks, rows and columns, from the stored weights."""

from prunescope.evaluate.sparsity.aggregate import (
    LayerSpread,
    differing_shapes,
    layer_spread,
)
from prunescope.evaluate.sparsity.alarms import check_pattern, find_alarms, same_answers
from prunescope.evaluate.sparsity.blocks import check_block
from prunescope.evaluate.sparsity.drift import CheckpointDrift, Overlap, TensorDrift, measure_drift
from prunescope.evaluate.sparsity.pictures import write_pictures
from prunescope.evaluate.sparsity.scan import Measurement, hash_weights, measure, summarize
from prunescope.evaluate.sparsity.text import alarm_lines, drift_report, sparsity_report

__all__ = [
    "CheckpointDrift",
    "LayerSpread",
    "Measurement",
    "Overlap",
    "TensorDrift",
    "alarm_lines",
    "check_block",
    "check_pattern",
    "differing_shapes",
    "drift_report",
    "find_alarms",
    "hash_weights",
    "layer_spread",
    "measure",
    "measure_drift",
    "same_answers",
    "sparsity_report",
    "summarize",
    "write_pictures",
]
