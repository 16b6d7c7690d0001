"""The base image of the project's Containerfiles where no public registry can be reached.

A minimal Debian with Python, made by debootstrap from the machine's own package mirror, imported into
buildah's storage once.
"""

import subprocess
import tempfile
from pathlib import Path

from readapt_cluster import disk, packages
from readapt_cluster.binaries import locked
from readapt_cluster.commands import run, succeeds
from readapt_cluster.errors import BuildFailed, CommandFailed
from readapt_cluster.places import cache
from readapt_cluster.preflight import require_root
from readapt_cluster.progress import step

SUITE = "bookworm"
NAME = f"localhost/readapt/base:{SUITE}"
_INCLUDE = "python3,python3-venv,ca-certificates"
_SPACE_MB = 1_000
_OWN_NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""debootstrap mounts /proc into the new root; in a mount namespace of its own it cannot stay behind, so that removing
the scratch folder never reaches the machine's /proc."""


def ensure() -> str:
    """Make the image unless buildah has it; its name. Raises Refused or BuildFailed."""
    require_root()
    packages.ensure(packages.BASE_IMAGE)
    with locked(cache() / "base-image.lock"):
        if not succeeds(["buildah", "inspect", "--type", "image", NAME]):
            _make()
    return NAME


def _make() -> None:
    disk.require(Path("/var/lib"), _SPACE_MB, "the base image")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root = Path(scratch) / "root"
        with step(f"Making a minimal Debian {SUITE}", "60 s"):
            make: list[str | Path] = [
                "debootstrap",
                "--variant=minbase",
                f"--include={_INCLUDE}",
                SUITE,
                root,
                *_mirror(),
            ]
            run([*_OWN_NAMESPACE, *make], timeout_s=1800)
        with step(f"Importing it as {NAME}", "10 s"):
            _commit(root)


def _commit(root: Path) -> None:
    for cached in [*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")]:
        cached.unlink()
    container = run(["buildah", "from", "scratch"]).strip()
    try:
        with subprocess.Popen(["tar", "-C", str(root), "-c", "--one-file-system", "."], stdout=subprocess.PIPE) as tar:
            mounted = run(["buildah", "mount", container]).strip()
            subprocess.run(["tar", "-C", mounted, "-x", "--numeric-owner"], stdin=tar.stdout, check=True)
        run(["buildah", "umount", container])
        run(["buildah", "config", "--cmd", "/bin/sh", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container])
        run(["buildah", "commit", "--rm", container, NAME])
    except (CommandFailed, subprocess.CalledProcessError) as failure:
        succeeds(["buildah", "rm", container])
        raise BuildFailed(f"{NAME} did not build.\n{failure}") from failure


def _mirror() -> list[str]:
    """The mirror this machine's apt uses for the suite; debootstrap's own default where there is none."""
    form = "$(SITE) $(RELEASE)"
    for line in run(["apt-get", "indextargets", "--format", form]).splitlines():
        site, _, release = line.partition(" ")
        if release == SUITE:
            return [site]
    return []
