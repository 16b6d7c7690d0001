"""Fixtures for every tier; see ``readapt_testing``."""

import os

# Kernels run in Triton's interpreter. Triton decides when it is imported, and other tests import it through PEFT.
os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["readapt_testing.plugin"]
