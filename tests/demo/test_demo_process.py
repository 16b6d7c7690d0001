"""How the demo ends when it is interrupted, and when the API server does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from readapt_demo import __main__ as demo
from readapt_demo.kubectl import Kubectl, KubectlFailed


def test_an_interrupt_ends_it_with_what_to_do_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["readapt_demo"])
    monkeypatch.setattr(demo, "_run", interrupted)
    assert demo.main() == 130
    assert "make cluster-down" in capsys.readouterr().err


def test_a_kubectl_that_hangs_is_a_failure_of_kubectl(tmp_path: Path) -> None:
    program = tmp_path / "kubectl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(KubectlFailed, match=r"get pods: no answer within 0\.2 s"):
        Kubectl(program, tmp_path / "kubeconfig")("get", "pods", timeout_s=0.2)
