"""Settings are validated when they are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from readapt_operator.kube.connect import NoCredentials, connect
from readapt_operator.settings import BadSettings, Settings, from_environment

GOOD = {"READAPT_RUNTIME_IMAGE": "registry.example/readapt:1", "READAPT_NAMESPACE": "readapt-system"}


def test_defaults_and_values() -> None:
    settings = from_environment({**GOOD, "READAPT_NAMESPACES": "a, b,", "READAPT_PROPAGATION_SECONDS": "0.5"})
    assert settings.namespaces == ("a", "b")
    assert (settings.propagation_s, settings.resync_s, settings.probe_port) == (0.5, 180.0, 8090)
    assert "runtime_image='registry.example/readapt:1'" in str(settings)


def test_the_pods_own_namespace_is_the_default() -> None:
    env = {"READAPT_RUNTIME_IMAGE": "image"}
    assert from_environment(env, own_namespace="here").namespace == "here"


@pytest.mark.parametrize(
    "env",
    [
        {"READAPT_NAMESPACE": "x"},
        {"READAPT_RUNTIME_IMAGE": "image"},
        {**GOOD, "READAPT_NAMESPACES": "Not_A_Name"},
        {**GOOD, "READAPT_RESYNC_SECONDS": "soon"},
        {**GOOD, "READAPT_RESYNC_SECONDS": "0"},
        {**GOOD, "READAPT_PROBE_PORT": "70000"},
        {**GOOD, "READAPT_PROBE_PORT": "nan"},
        {**GOOD, "READAPT_LEASE_SECONDS": "inf"},
    ],
    ids=["no image", "no namespace", "bad namespace", "no number", "zero", "bad port", "nan", "infinite"],
)
def test_bad_settings_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(BadSettings):
        from_environment(env)


def test_settings_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_environment(GOOD).resync_s = 1.0  # type: ignore[misc]
    assert isinstance(from_environment(GOOD), Settings)


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(NoCredentials, match=f"KUBECONFIG={tmp_path}/none: "):
        connect()


def test_outside_a_pod_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NoCredentials, match="KUBECONFIG is not set"):
        connect()
