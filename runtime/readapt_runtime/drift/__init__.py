"""The difference of two base versions per linear module: exact norm and low-rank factors, computed once per pair."""

from readapt_runtime.drift.folder import DRIFT_REPORT, DRIFT_WEIGHTS, read_drift
from readapt_runtime.drift.measurement import DriftSummary, measure

__all__ = ["DRIFT_REPORT", "DRIFT_WEIGHTS", "DriftSummary", "measure", "read_drift"]
