"""Fixtures of the tests on real clusters; see ``readapt_testing``."""

pytest_plugins = ["readapt_testing.plugin"]
