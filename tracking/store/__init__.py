"""The tracking store: the only part of prunescope that knows MLflow."""

from prunescope.tracking.runs import StoredRun
from prunescope.tracking.store.client import Store, open_store

__all__ = ["Store", "StoredRun", "open_store"]
