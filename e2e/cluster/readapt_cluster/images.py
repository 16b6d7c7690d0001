"""Images: build the tool's own with buildah, bring any image from buildah's storage into the cluster.

A load moves only layers that containerd does not hold yet, uncompressed, in one stream: skopeo writes an
OCI layout in which containerd's blobs already lie (as links), so it skips them; the new ones go on to
`ctr images import`. A code change on top of a large image moves megabytes.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readapt_cluster import disk
from readapt_cluster.commands import last_lines, run, succeeds
from readapt_cluster.errors import BuildFailed, CommandFailed, Refused
from readapt_cluster.node_config import SOCKET
from readapt_cluster.places import CLUSTER, IMAGE_STORE, NODE_STATE
from readapt_cluster.progress import say, step

CTR = ("ctr", f"--address={SOCKET}", "--namespace=k8s.io")
_BLOBS = IMAGE_STORE / "io.containerd.content.v1.content" / "blobs" / "sha256"
_COPIES = 3
"""A new layer lies in the layout for a moment, in the content store and in the snapshotter."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one load moved."""

    image: str
    moved_bytes: int
    kept_bytes: int
    """Bytes of layers that containerd held already."""


def load(image: str) -> Loaded:
    """Bring `image` from buildah's storage into the running node's containerd, under the same name.

    Raises Refused where there is no node, no such image or too little disk, CommandFailed otherwise.
    """
    require_node()
    name, source = find(image)
    layers = _layer_sizes(source)
    new = sum(size for digest, size in layers.items() if not (_BLOBS / digest).exists())
    disk.require(IMAGE_STORE, (new * _COPIES >> 20) + 500, f"loading {name} ({new >> 20} MB of new layers)")
    total = sum(layers.values())
    with (
        step(f"Loading {name}: {new >> 20} MB of {total >> 20} MB are new", _usual(new)),
        tempfile.TemporaryDirectory(dir=NODE_STATE, prefix="load-") as scratch,
    ):
        layout = _layout_with_known_blobs(Path(scratch))
        run(["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", source, f"oci:{layout}:new"])
        moved = _import(layout, name)
    return Loaded(name, moved, total - new)


def is_loaded(name: str) -> bool:
    """Whether the node's containerd has an image of exactly this name."""
    return bool(run([*CTR, "images", "ls", "--quiet", f"name=={name}"]).strip())


def build(name: str, containerfile: str, program: Path) -> None:
    """Build one of `e2e/cluster/images` whose only content is `program`; kept if it is there already."""
    if succeeds(["buildah", "inspect", "--type", "image", name]):
        return
    recipe = CLUSTER / "images" / containerfile
    with step(f"Building image {name}", "3 s"), tempfile.TemporaryDirectory() as context:
        shutil.copy(program, context)
        try:
            run(["buildah", "bud", "--isolation", "chroot", "--file", recipe, "--tag", name, context])
        except CommandFailed as failure:
            raise BuildFailed(f"{name} did not build.\n{failure}") from failure


def require_node() -> None:
    """Raises Refused unless the node's containerd answers."""
    if not succeeds([*CTR, "version"]):
        raise Refused("No node is up. Start one with `python -m readapt_cluster up` (as root).")


def find(image: str) -> tuple[str, str]:
    """(full name, skopeo source) of an image in buildah's storage. Raises Refused when it is not there."""
    try:
        found = run(["buildah", "images", "--json", image])
    except CommandFailed:
        raise Refused(f"buildah's storage has no image {image}. Build it first; `buildah images` lists all.") from None
    names = [name for entry in json.loads(found) for name in entry.get("names") or []]
    wanted = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    full = next((name for name in names if name in (wanted, f"localhost/{wanted}")), None)
    if full is None:
        raise Refused(f"{image} has no name of its own in buildah's storage; tag it and load it by that name.")
    store = json.loads(run(["buildah", "info"]))["store"]
    where = f"{store['GraphDriverName']}@{store['GraphRoot']}+{store['RunRoot']}"
    return full, f"containers-storage:[{where}]{full}"


def _layer_sizes(source: str) -> dict[str, int]:
    """Bytes of each layer of the image, by hex digest."""
    manifest = json.loads(run(["skopeo", "inspect", "--raw", source]))
    return {layer["digest"].partition(":")[2]: int(layer["size"]) for layer in manifest["layers"]}


def _layout_with_known_blobs(folder: Path) -> Path:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for blob in _BLOBS.iterdir() if _BLOBS.exists() else ():
        (blobs / blob.name).symlink_to(blob)
    return folder


def _import(layout: Path, name: str) -> int:
    """Stream the layout's new blobs into containerd; how many bytes those were."""
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": name}
    blobs = [blob for blob in (layout / "blobs" / "sha256").iterdir() if not blob.is_symlink()]
    # The importer wants the manifest itself in the stream, also when containerd holds it.
    manifest = layout / "blobs" / "sha256" / index["manifests"][0]["digest"].partition(":")[2]
    with _importer() as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        _add(archive, "oci-layout", (layout / "oci-layout").read_bytes())
        _add(archive, "index.json", json.dumps(index).encode())
        for blob in {manifest, *blobs}:
            entry = tarfile.TarInfo(f"blobs/sha256/{blob.name}")
            entry.size = blob.stat().st_size
            with blob.open("rb") as content:
                archive.addfile(entry, content)
    return sum(blob.stat().st_size for blob in blobs)


@contextmanager
def _importer() -> Iterator[Any]:
    """`ctr images import` reading from the stream that is handed out; raises CommandFailed with its words."""
    with tempfile.TemporaryFile() as words:
        argv = [*CTR, "images", "import", "--snapshotter=overlayfs", "-"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=words, stderr=subprocess.STDOUT) as child:
            try:
                yield child.stdin
            except BrokenPipeError:
                say("  the import ended early")
        if child.returncode != 0:
            words.seek(0)
            raise CommandFailed(f"ctr images import: {last_lines(words.read().decode(errors='replace'))}")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _usual(new_bytes: int) -> str:
    return f"{max(1, new_bytes // 40_000_000)} s"
