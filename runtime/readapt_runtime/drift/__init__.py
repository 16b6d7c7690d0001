"""The difference of two base versions per linear module: exact norm and low-rank factors, computed once per pair."""

from readapt_runtime.drift.folder import DRIFT_REPORT, DRIFT_WEIGHTS, DriftReport, read_drift
from readapt_runtime.drift.measurement import measure

__all__ = ["DRIFT_REPORT", "DRIFT_WEIGHTS", "DriftReport", "measure", "read_drift"]
