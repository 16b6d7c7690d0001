"""Fixtures for every tier; see ``readapt_testing``."""

pytest_plugins = ["readapt_testing.plugin"]
