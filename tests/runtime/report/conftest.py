"""Evidence as a Job leaves it, with names that want to break out of the page."""

from __future__ import annotations

import copy
from typing import Any

import pytest

HOSTILE = '"><script>alert("&")</script>$\\frac$'
DIGEST = "sha256:" + "{0}" * 64


def rung(origin: str, verdict: str, score: float, lower: float, upper: float, **more: Any) -> dict[str, Any]:
    interval = {"lower": lower, "upper": upper}
    base = {"origin": origin, "verdict": verdict, "score": score, "reference": 0.9, "interval": interval}
    return {**base, "samples": 900, "seconds": 12.5, "message": f"{origin}: said", **more}


def trial(alpha: float, beta: float, loss: float, retention: float | None = 0.8) -> dict[str, Any]:
    return {"alpha": alpha, "beta": beta, "loss": loss, "retention": retention, "floor": 0.7}


EVIDENCE: dict[str, Any] = {
    "request": {
        "kind": "adapt",
        "oldBase": DIGEST.format("1"),
        "newBase": DIGEST.format("2"),
        "drift": DIGEST.format("3"),
        "items": [
            {
                "name": HOSTILE,
                "reference": DIGEST.format("4"),
                "data": DIGEST.format("5"),
                "adaptation": {"policy": "Auto", "trials": 5},
                "gate": {"maxRegression": "0.03", "confidence": "0.95"},
            }
        ],
    },
    "seed": 77,
    "threads": 2,
    "versions": {"torch": "2.13.0"},
    "examples": {"train": 1000, "gate": 900},
    "leaked": 3,
    "repeated": 4711,
    "forecast": {"size": 4.25, "read": 0.125, "written": 0.0625, "along": -0.01, "points": 6.04, "error": 2.51},
    "choices": [HOSTILE, " yes"],
    "seconds": {"search": 3.25, "tuning": 40.0},
    "rungs": [
        rung("Copied", "Failed", 0.82, -0.11, -0.05, retention=1.0, retentionFloor=0.72),
        rung("ReLoRA", "Passed", 0.91, -0.012, 0.031, retention=0.85, retentionFloor=0.72),
    ],
    "relora": {
        "target": 0.9,
        "trials": [trial(1.0, 0.0, 0.5), trial(0.0, 0.0, 40.0), trial(1.0, -0.5, 0.4, 0.5), trial(1.2, 0.25, 0.3)],
        "start": trial(1.2, 0.25, 0.31),
        "curve": [
            {"step": 0, "score": 0.85, "retention": {"value": 0.8, "standard_error": 0.01}},
            {"step": 4, "score": 0.89, "retention": None},
            {"step": 8, "score": 0.92, "retention": {"value": 0.85, "standard_error": 0.01}},
        ],
        "trainLosses": [0.9, 0.7, 0.6, 0.55, 0.5, 0.48, 0.47, 0.46],
        "best": 8,
    },
}
KINDS = ("self_attn.q_proj", "mlp.up_proj")
EXTRACTION: dict[str, Any] = {
    "version": 1,
    "rank": 16,
    "norm": 2.0,
    "energy": 0.93,
    "sidecarShare": 0.02,
    "relativeError": 0.2,
    "unchanged": 1,
    "warnings": [f"look at {HOSTILE}"],
    "sidecar": {"model.norm.weight": {"reason": "no linear module", "norm": 0.1, "share": 0.02}},
    "modules": {
        f"model.layers.{layer}.{kind}": {
            "shape": [64, 64],
            "rank": 4,
            "norm": 1.0,
            "relativeNorm": 0.1,
            "energy": 0.9 + 0.02 * layer,
            "spectrum": [0.5 + 0.01 * layer, 0.7, 0.85, 0.9 + 0.02 * layer],
            "relativeError": 0.3,
            "capped": False,
            "iterations": 2,
        }
        for layer in (0, 1, 2)
        for kind in KINDS
    },
}


DRIFT: dict[str, Any] = {
    "version": 1,
    "rank": 3,
    "relativeNorm": 0.1234,
    "capturedEnergy": 0.875,
    "rest": {"model.norm.weight": 0.5, HOSTILE: 0.25},
    "modules": {
        f"model.layers.{layer}.{kind}": {
            "norm": 2.0 * layer,
            "baseNorm": 10.0 + at,
            "capturedEnergy": 0.75 if layer else 1.0,
            "rank": 3 if layer else 0,
            "iterations": 0,
            "singularValues": [1.5 * layer, 0.75 * layer, 0.5 * layer] if layer else [],
        }
        for layer in (0, 1, 2)
        for at, kind in enumerate(KINDS)
    },
}


@pytest.fixture(scope="session")
def sample() -> dict[str, Any]:
    """Not to be changed."""
    return EVIDENCE


@pytest.fixture
def evidence(sample: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(sample)


@pytest.fixture
def extraction() -> dict[str, Any]:
    return copy.deepcopy(EXTRACTION)


@pytest.fixture
def drift() -> dict[str, Any]:
    return copy.deepcopy(DRIFT)


@pytest.fixture
def hostile() -> str:
    return HOSTILE
