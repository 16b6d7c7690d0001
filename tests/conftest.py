"""Fixtures for every tier; see ``readapt_testing``."""

import os

from hypothesis import HealthCheck, settings

# Kernels run in Triton's interpreter. Triton decides when it is imported, and other tests import it through PEFT.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Set for tests that compute: workers that share their processors wait for each other's threads in every small product,
# so each takes one for itself. Where tests wait for processes of their own, a worker is not to be held to one.
if "PIN_WORKERS" in os.environ and (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

pytest_plugins = ["readapt_testing.plugin"]
