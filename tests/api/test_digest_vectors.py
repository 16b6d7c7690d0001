"""Digests are stable for ever: known vectors that were computed by hand from sha256 alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from readapt_api import digest
from readapt_api.digest import BadPath, FileEntry

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-2, appendix B.1: sha256 of ``abc``."""
NAMES = st.text(alphabet="abcdefgh/._-", min_size=1, max_size=12).filter(lambda name: not name.startswith("/"))
ENTRIES = st.lists(
    st.builds(FileEntry, name=NAMES, size=st.integers(0, 1 << 40), sha256=st.just(ABC)),
    min_size=1,
    max_size=5,
    unique_by=lambda entry: entry.name,
)


def sha(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_source_digest_is_the_hash_of_this_very_text() -> None:
    files = [FileEntry(name="b.txt", size=3, sha256=ABC), FileEntry(name="a.txt", size=0, sha256=EMPTY)]
    text = f'{{"files":[{{"name":"a.txt","sha256":"{EMPTY}","size":0}},{{"name":"b.txt","sha256":"{ABC}","size":3}}]}}'

    assert digest.source_digest(files) == sha(text)


def test_source_digest_of_a_folder_with_one_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")

    assert digest.digest_path(tmp_path) == sha(f'{{"files":[{{"name":"x","sha256":"{ABC}","size":3}}]}}')
    assert digest.digest_path(tmp_path / "x") == digest.digest_path(tmp_path)


def test_variant_digest_binds_the_base() -> None:
    files = [FileEntry(name="w", size=3, sha256=ABC)]
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    text = f'{{"base":"{one}","files":[{{"name":"w","sha256":"{ABC}","size":3}}],"kind":"Variant"}}'

    assert digest.variant_digest(one, files) == sha(text)
    assert digest.variant_digest(two, files) != digest.variant_digest(one, files)
    assert digest.variant_digest(one, files) != digest.source_digest(files)


def test_canonical_json_is_utf8_and_sorted() -> None:
    assert digest.canonical_json({"b": "ä", "a": [1, None, True]}) == '{"a":[1,null,true],"b":"ä"}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest.canonical_json({"x": float("nan")})


@given(ENTRIES, st.randoms())
def test_order_of_files_does_not_matter(entries: list[FileEntry], draw: object) -> None:
    shuffled = list(entries)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]

    assert digest.source_digest(shuffled) == digest.source_digest(entries)


@given(ENTRIES)
def test_any_change_of_a_file_changes_the_digest(entries: list[FileEntry]) -> None:
    first, *rest = entries
    for change in ({"size": first.size + 1}, {"sha256": EMPTY}, {"name": f"{first.name}x!"}):
        assert digest.source_digest([first.model_copy(update=change), *rest]) != digest.source_digest(entries)
    if rest:
        assert digest.source_digest(rest) != digest.source_digest(entries)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=5))
def test_digest_of_is_that_of_the_standard_librarys_json(document: dict[str, object]) -> None:
    text = json.dumps(dict(sorted(document.items())), separators=(",", ":"), ensure_ascii=False)
    # Surrogates cannot be encoded; hypothesis leaves them out of text by default.
    assert digest.digest_of(document) == sha(text)


def test_hidden_files_and_times_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"abc")
    before = digest.digest_path(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("x")
    (tmp_path / "sub" / ".DS_Store").write_text("x")
    os.utime(tmp_path / "sub" / "x", (1, 1))

    assert digest.digest_path(tmp_path) == before
    assert [name for name, _ in digest.list_source(tmp_path)] == ["sub/x"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside"])
def test_link_out_of_the_folder_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "link").symlink_to(target)

    with pytest.raises(BadPath, match="not a regular file inside"):
        digest.digest_path(folder)


def test_link_inside_the_folder_is_the_file_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")

    assert [entry.sha256 for entry in (digest.hash_file(p, n) for n, p in digest.list_source(tmp_path))] == [ABC, ABC]


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p], ids=["missing", "empty folder"])
def test_nothing_there_is_refused(make: object, tmp_path: Path) -> None:
    with pytest.raises(BadPath):
        digest.digest_path(make(tmp_path))  # type: ignore[operator]


def test_a_file_that_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(BadPath, match="/proc/self/mem: Input/output error"):
        digest.digest_path(Path("/proc/self/mem"))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "x").write_bytes(b"abc")
    listed = os.scandir

    def scandir(path: Path) -> object:
        if path == tmp_path / "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadPath, match="locked: Permission denied"):
        digest.digest_path(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [(b"caf\xe9", "the name is not UTF-8"), (b"/".join([b"a" * 250] * 5), "more than 1024 characters")],
    ids=["Latin-1", "long"],
)
def test_a_name_that_no_manifest_can_hold_is_refused(name: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"abc")

    with pytest.raises(BadPath, match=message):
        digest.digest_path(tmp_path)


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(BadPath):
        digest.digest_path(tmp_path)
