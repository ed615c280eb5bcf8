"""The tracking store: the only part of prunescope that knows MLflow."""

from prunescope.tracking.runs import StoredRun
from prunescope.tracking.store.client import Store, open_store
from prunescope.tracking.store.diagnosis import StoreDiagnosis, diagnose_store

__all__ = ["Store", "StoreDiagnosis", "StoredRun", "diagnose_store", "open_store"]
