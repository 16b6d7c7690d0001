"""What the stage has made before it calls it, and what it tells Helm. Every program is a stub that notes its call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from readapt_cluster import binaries, catalog, disk, preflight
from readapt_cluster.catalog import Tool
from readapt_cluster.errors import Refused
from readapt_demo import stage


@dataclass(frozen=True, slots=True)
class Stubs:
    """A machine with an empty cache; buildah answers with an id."""

    root: Path

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    def program(self, path: Path, says: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho {path.name} "$@" >> {self.root}/calls\necho "{says}"\n')
        path.chmod(0o755)

    def build(self, tools: Iterable[Tool]) -> None:
        for tool in tools:
            self.program(binaries.path_of(tool.name))


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    made = Stubs(tmp_path)
    made.program(tmp_path / ".venv" / "bin" / "python")
    made.program(tmp_path / "bin" / "buildah", says="0123456789ab")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("READAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "ensure", made.build)
    return made


def test_every_program_that_is_called_is_made_before(stubs: Stubs) -> None:
    stage.start_cluster(stubs.root)
    kube = stage.kubectl(stubs.root)
    stage.install(stubs.root, kube)
    kube("get", "pods")
    stage.uninstall(kube)

    assert {call.split()[0] for call in stubs.calls()} == {"python", "buildah", "kubectl", "helm"}


@pytest.mark.parametrize("lacking", [None, "helm", "kubectl", "kubelet"])
def test_a_program_that_is_still_to_be_built_asks_for_the_disk_of_a_first_time(
    lacking: str | None, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("require_root", "require_no_engine"):
        monkeypatch.setattr(preflight, check, lambda: None)
    monkeypatch.setattr(disk, "free_mb", lambda _: 20_000)
    stubs.build(tool for tool in catalog.ALL if tool.name != lacking)

    if lacking is None:
        stage.check_machine()
    else:
        with pytest.raises(Refused, match="36000 MB needed"):
            stage.check_machine()


def test_the_operator_is_told_the_id_of_its_image(stubs: Stubs) -> None:
    """A new image under the old name has to reach an operator that runs already."""
    stage.start_cluster(stubs.root)
    stage.install(stubs.root, stage.kubectl(stubs.root))

    assert "buildah images --storage-driver overlay --quiet localhost/readapt/operator:dev" in stubs.calls()
    assert stubs.calls()[-1].endswith(" --set-string operator.podAnnotations.image-id=0123456789ab")
