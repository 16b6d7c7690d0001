from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from readapt_api.artifacts import MANIFEST, ArtifactKind, FactorBlock, Manifest
from readapt_api.digest import digest_path, hash_file, variant_digest
from readapt_api.jobs import DriftOutcome
from readapt_runtime.store import (
    CorruptArtifact,
    MissingArtifact,
    ReservedName,
    Store,
    StoreFull,
    StoreUnavailable,
)

BASE = "sha256:" + "b" * 64
HASH = "sha256:" + "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights.bin").write_bytes(b"w" * 100_000)
    (folder / "probe.json").write_text('{"measured": 1}')
    return folder


def published(store: Store, files: Path) -> Manifest:
    return store.publish(ArtifactKind.VARIANT, files, base=BASE, rank=8, attachments=("probe.json",))


def leftovers(store: Store) -> list[Path]:
    return [p for p in (store.root / "tmp").iterdir() if not p.name.startswith(".")]


def test_a_published_artifact_opens_under_the_digest_of_its_files(store: Store, files: Path) -> None:
    manifest = published(store, files)

    names = ("config.json", "deep/weights.bin")
    assert manifest.digest == variant_digest(BASE, [hash_file(files / name, name) for name in names])
    artifact = store.open(manifest.digest, verify=True)
    assert artifact.manifest == manifest
    assert (artifact.path / "deep/weights.bin").read_bytes() == b"w" * 100_000
    assert artifact.entry("probe.json").size == len('{"measured": 1}')
    assert files.is_dir()
    assert leftovers(store) == []


def test_a_base_has_the_digest_that_readapt_digest_prints(store: Store, files: Path) -> None:
    assert store.publish(ArtifactKind.BASE, files).digest == digest_path(files)


def test_a_staged_folder_is_moved_and_its_attachments_do_not_change_the_digest(store: Store, files: Path) -> None:
    first = published(store, files)
    (files / "probe.json").write_text('{"measured": 2}')
    with store.stage() as folder:
        for name in ("config.json", "probe.json", "deep/weights.bin"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((files / name).read_bytes())
        second = published(store, folder)

    assert second == first, "the first valid artifact of a digest stays"
    assert (store.open(first.digest).path / "probe.json").read_text() == '{"measured": 1}'
    assert leftovers(store) == []


def test_serving_pods_of_another_uid_can_read_it(store: Store, files: Path) -> None:
    (files / "config.json").chmod(0o600)
    mask = os.umask(0o077)
    try:
        manifest = published(store, files)
    finally:
        os.umask(mask)

    folder = store.open(manifest.digest).path
    modes = {p.relative_to(store.root): stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.rglob("*"))}
    assert all(mode == (0o755 if (store.root / name).is_dir() else 0o644) for name, mode in modes.items()), modes
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o755


def test_two_equal_publishers_at_once_leave_one_valid_artifact(store: Store, files: Path) -> None:
    barrier = threading.Barrier(4)
    found: list[Manifest] = []

    def publish() -> None:
        barrier.wait()
        found.append(published(store, files))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len({m.digest for m in found}) == 1
    assert len(list((store.root / "artifacts").iterdir())) == 1
    store.open(found[0].digest, verify=True)
    assert leftovers(store) == []


@pytest.mark.parametrize("leftover", ["without manifest", "with a cut manifest", "with a missing file"])
def test_what_a_power_loss_left_in_its_place_is_replaced(store: Store, files: Path, leftover: str) -> None:
    manifest = published(store, files)
    folder = store.open(manifest.digest).path
    if leftover == "with a missing file":
        (folder / "config.json").unlink()
    else:
        content = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).unlink()
        if leftover == "with a cut manifest":
            (folder / MANIFEST).write_bytes(content[:40])

    assert not store.has(manifest.digest)
    assert published(store, files) == manifest
    store.open(manifest.digest, verify=True)
    assert leftovers(store) == []


_KILL_AT_EACH_STEP = """
import itertools, os, signal, sys
from pathlib import Path
import readapt_runtime.store as module
from readapt_api.artifacts import ArtifactKind

def stopping_at(step):
    left = step
    def stop_before(call):
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return counted
    os.fsync, os.rename, os.mkdir = stop_before(os.fsync), stop_before(os.rename), stop_before(os.mkdir)
    os.chmod, module.hash_file = stop_before(os.chmod), stop_before(module.hash_file)

for step in itertools.count(1):
    child = os.fork()
    if child == 0:
        stopping_at(step)
        module.Store(Path(sys.argv[1]) / str(step)).publish(
            ArtifactKind.VARIANT, Path(sys.argv[2]), base="sha256:" + "b" * 64, attachments=("probe.json",)
        )
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(code)
"""


def test_a_publisher_killed_at_any_step_leaves_nothing_that_a_reader_takes_for_an_artifact(
    tmp_path: Path, files: Path
) -> None:
    """SIGKILL before the n-th call that changes the disk, for every n, each in a store of its own."""
    digest = published(Store(tmp_path / "reference"), files).digest
    stores = tmp_path / "stores"
    stores.mkdir()
    subprocess.run([sys.executable, "-c", _KILL_AT_EACH_STEP, str(stores), str(files)], check=True)

    steps = sorted(stores.iterdir(), key=lambda p: int(p.name))
    assert len(steps) > 15
    for store in map(Store, steps):
        if store.has(digest):
            store.open(digest, verify=True)
        else:
            assert not list(store.root.glob("artifacts/*"))
        assert published(store, files).digest == digest, "the next attempt succeeds"


def corrupt(folder: Path, how: str) -> None:
    weights = folder / "deep" / "weights.bin"
    content = bytearray(weights.read_bytes())
    match how:
        case "a flipped bit":
            content[50_000] ^= 1
        case "a hole of zeros":
            content[:] = bytes(len(content))
        case "cut short":
            del content[-1:]
        case "bytes appended":
            content += b"x"
    weights.write_bytes(content)


@pytest.mark.parametrize("how", ["a flipped bit", "a hole of zeros", "cut short", "bytes appended"])
def test_changed_bytes_are_noticed(store: Store, files: Path, how: str) -> None:
    digest = published(store, files).digest
    corrupt(store.open(digest).path, how)
    with pytest.raises(CorruptArtifact, match=r"deep/weights\.bin"):
        store.open(digest, verify=True)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "deep/../../outside"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(store: Store, files: Path, name: str) -> None:
    digest = published(store, files).digest
    path = store.open(digest).path / MANIFEST
    path.write_text(path.read_text().replace('"probe.json"', f'"{name}"'))
    with pytest.raises(CorruptArtifact):
        store.open(digest)


def test_a_link_in_the_place_of_a_file_is_refused(store: Store, files: Path) -> None:
    digest = published(store, files).digest
    config = store.open(digest).path / "config.json"
    config.unlink()
    config.symlink_to(files / "config.json")
    with pytest.raises(CorruptArtifact, match="no regular file"):
        store.open(digest)


def test_a_manifest_of_another_artifact_is_refused(store: Store, files: Path) -> None:
    digest = published(store, files).digest
    store.open(digest).path.rename(store.root / "artifacts" / ("c" * 64))
    with pytest.raises(CorruptArtifact):
        store.open("sha256:" + "c" * 64)


def test_an_unknown_digest_may_come_later(store: Store) -> None:
    with pytest.raises(MissingArtifact):
        store.open(HASH)


def test_a_source_may_not_bring_a_manifest(store: Store, files: Path) -> None:
    (files / MANIFEST).write_text("{}")
    with pytest.raises(ReservedName):
        published(store, files)


def test_a_full_disk_is_said_and_may_be_tried_again(store: Store, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreFull, match="full"):
            published(store, files)
        with pytest.raises(StoreFull, match="full"):
            store.write_evidence(HASH, {})
    assert leftovers(store) == []
    assert published(store, files)


def test_a_full_disk_while_an_artifact_is_made_is_said_too(store: Store) -> None:
    with pytest.raises(StoreFull, match="full"), store.stage():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), store.stage():
        raise FileNotFoundError(errno.ENOENT, "something else")
    assert leftovers(store) == []


def test_a_result_is_read_back_and_one_of_an_older_contract_is_not(store: Store) -> None:
    assert store.read_result(HASH, DriftOutcome) is None
    outcome = DriftOutcome(input_hash=HASH, digest=BASE, relative_norm=0.5, captured_energy=1.0)
    store.write_result(HASH, outcome)
    assert store.read_result(HASH, DriftOutcome) == outcome

    (store.root / "results" / f"{'a' * 64}.json").write_text('{"digest": "an older form"}')
    assert store.read_result(HASH, DriftOutcome) is None


def test_a_result_that_cannot_be_read_is_the_stores_fault(store: Store) -> None:
    (store.root / "results" / f"{'a' * 64}.json").mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.read_result(HASH, DriftOutcome)


def test_evidence_is_named_by_the_digest_of_its_bytes(store: Store) -> None:
    digest = store.write_evidence(HASH, {"scores": [1, 2]})
    path = store.root / "results" / f"{'a' * 64}.evidence.json"
    assert digest == f"sha256:{hash_file(path, 'x').sha256}"
    assert leftovers(store) == []


def test_blocks_and_rank_are_kept(store: Store, files: Path) -> None:
    manifest = store.publish(ArtifactKind.VARIANT, files, base=BASE, rank=8, blocks=(FactorBlock(),))
    assert store.open(manifest.digest).manifest.blocks == (FactorBlock(),)
