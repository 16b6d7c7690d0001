"""One container: a process in its own network, mount and process namespaces.

    start → (exits by itself | terminate, kill) → exit_code

The namespaces have no names: when the last process is gone the kernel takes mounts and interfaces away with it.
Needs root, ``unshare`` and ``ip``.
"""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from readapt_cluster.guardian import Guardian
from readapt_testing.player.addresses import HOST, Link

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
CHECKOUT = Path(__file__).resolve().parents[4]
IMAGE_PATHS = (CHECKOUT, Path(sys.prefix), Path(sys.base_prefix))
"""What the "image" must show even where a volume or another file system lies over it."""
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of this machine and where the container sees it."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that starting a container takes."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    folder: Path
    """Scratch of this run of the container; takes ``log`` and ``termination-log``."""
    read_only_root: bool
    working_dir: str = "/"


@dataclass(slots=True)
class Sandbox:
    """A started container."""

    spec: ContainerSpec
    link: Link
    _process: subprocess.Popen[bytes]
    _guardian: Guardian
    _waiter: threading.Thread = field(init=False)

    @classmethod
    def start(cls, spec: ContainerSpec, link: Link, guardian: Guardian, on_exit: Callable[[], None]) -> Sandbox:
        """Starts the process; ``on_exit`` is called from a thread once it has ended."""
        (spec.folder / "root").mkdir(parents=True)
        (spec.folder / "termination-log").touch()
        ours, theirs = socket.socketpair()
        with (spec.folder / "log").open("wb") as log, ours, theirs:
            process = subprocess.Popen(
                ["unshare", "--net", "sh", "-euc", _join_network(spec, link)],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            theirs.close()
            guardian.watch(process.pid)
            sandbox = cls(spec, link, process, guardian)
            sandbox._waiter = threading.Thread(target=sandbox._reap, args=(on_exit,), daemon=True)
            sandbox._waiter.start()
            sandbox._connect(ours)
        return sandbox

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + n for a process that signal n ended, as container runtimes report it."""
        code = self._process.returncode
        return code if code is None or code >= 0 else 128 - code

    @property
    def log(self) -> str:
        return (self.spec.folder / "log").read_text(errors="replace")

    @property
    def termination_message(self) -> str:
        """What the container left in /dev/termination-log, at most 4096 bytes as a kubelet reads them."""
        return (self.spec.folder / "termination-log").read_bytes()[-4096:].decode(errors="replace")

    def terminate(self) -> None:
        """SIGTERM to the container's first process; as on a node, one that has no handler for it ignores it."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the first process: the kernel ends all others of the container with it."""
        self._signal(signal.SIGKILL)

    def execute(self, argv: Sequence[str], timeout_s: float) -> int:
        """Runs a command inside the container (a preStop hook); its exit code, 124 past the time limit."""
        pid = self._first_process()
        if pid is None:
            return 126
        enter = ["nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--root", "--", *argv]
        try:
            return subprocess.run(enter, capture_output=True, timeout=timeout_s, check=False).returncode
        except subprocess.TimeoutExpired:
            return 124

    def join(self) -> None:
        """Returns when the process is gone."""
        self._waiter.join()

    def _connect(self, channel: socket.socket) -> None:
        # Its network namespace exists once it speaks; moving an interface earlier would hit our own.
        channel.recv(16)
        try:
            self.link.connect(self._process.pid)
        except BaseException:
            self._process.kill()
            raise
        channel.sendall(b"go\n")

    def _signal(self, number: signal.Signals) -> None:
        pid = self._first_process()
        subprocess.run(["kill", f"-{number.value}", str(pid or self._process.pid)], capture_output=True, check=False)

    def _first_process(self) -> int | None:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            pids = children.read_text().split()
        except OSError:
            return None
        return int(pids[0]) if pids else None

    def _reap(self, on_exit: Callable[[], None]) -> None:
        self._process.wait()
        self._guardian.forget(self._process.pid)
        self.link.disconnect()
        on_exit()


def _join_network(spec: ContainerSpec, link: Link) -> str:
    """Reports that the namespace is there, waits for the host's end, takes the address, goes on in the others."""
    child = shlex.join(["setpriv", "--pdeathsig", "KILL", "sh", "-euc", _enter_root(spec)])
    # The shell's first child is process 1 of the new namespace; unlike ``unshare --fork`` the shell also reports a
    # child that SIGKILL ended (137).
    inner = shlex.join(["unshare", "--mount", "--pid", "sh", "-c", f"{child} & wait $!"])
    return f"""echo unshared >&0
read go
ip link set lo up
ip link set eth0 up
ip addr add {link.address}/32 dev eth0
ip route add {HOST}/32 dev eth0
exec {inner} </dev/null"""


def _enter_root(spec: ContainerSpec) -> str:
    """Builds the root as container runtimes do, then becomes the container's command."""
    scratch = shlex.quote(str(spec.folder / "root"))
    devices = " ".join(_DEVICES)
    lines = [
        f"S={scratch}; R=$S/r",
        "mount -t tmpfs scratch $S",
        "mkdir $S/upper $S/work $R",
        "mount -t overlay root -o lowerdir=/,upperdir=$S/upper,workdir=$S/work $R",
        "mount -t proc proc $R/proc",
        "mount -t sysfs -o ro sysfs $R/sys",
        "mount -t tmpfs dev $R/dev",
        f"for d in {devices}; do touch $R/dev/$d; mount --bind /dev/$d $R/dev/$d; done",
        "ln -s /proc/self/fd $R/dev/fd; mkdir $R/dev/shm; mount -t tmpfs shm $R/dev/shm",
        *(line for mount in _all_mounts(spec) for line in _bind(mount)),
        *(["mount -o remount,bind,ro $R"] if spec.read_only_root else []),
        f"cd $R; exec chroot $R env -i {_environment(spec)} sh -c {shlex.quote(_command(spec))}",
    ]
    return "\n".join(lines)


def _all_mounts(spec: ContainerSpec) -> tuple[Mount, ...]:
    image = tuple(Mount(path, str(path), read_only=True) for path in IMAGE_PATHS)
    return (*spec.mounts, *image, Mount(spec.folder / "termination-log", "/dev/termination-log", read_only=False))


def _bind(mount: Mount) -> list[str]:
    source, target = shlex.quote(str(mount.source)), f"$R{shlex.quote(mount.target)}"
    prepare = f"mkdir -p {target}" if mount.source.is_dir() else f"touch {target}"
    lines = [prepare, f"mount --bind {source} {target}"]
    return [*lines, f"mount -o remount,bind,ro {target}"] if mount.read_only else lines


def _environment(spec: ContainerSpec) -> str:
    return " ".join(shlex.quote(f"{k}={v}") for k, v in ({"PATH": PATH} | dict(spec.env)).items())


def _command(spec: ContainerSpec) -> str:
    return f"cd {shlex.quote(spec.working_dir)}; exec {shlex.join(spec.argv)}"
