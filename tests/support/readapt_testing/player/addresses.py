"""Addresses of played pods: one pair of virtual interfaces per container, out of the range for benchmarks (RFC 2544).

Loopback would not do: pods use equal ports, and the API server refuses loopback addresses in EndpointSlices.
"""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import threading
from dataclasses import dataclass

HOST = "198.18.255.254"
"""This machine as the pods see it; they reach nothing else."""
_CHOICES = 0xFE00


class NoNetwork(RuntimeError):
    """The machine does not let tests make network interfaces (root and iproute2 are needed)."""


@dataclass(frozen=True, slots=True)
class Link:
    """The host's end of one pod's network."""

    address: str
    interface: str

    def connect(self, pid: int) -> None:
        """Makes the pair: ``eth0`` in the network namespace of ``pid``, and a route to it here."""
        _ip(
            f"link add {self.interface} type veth peer name eth0 netns {pid}",
            f"addr add {HOST}/32 dev {self.interface}",
            f"link set {self.interface} up",
            f"route add {self.address}/32 dev {self.interface} src {HOST}",
        )

    def disconnect(self) -> None:
        """Takes the pair away; the kernel may have done so already."""
        subprocess.run(["ip", "link", "delete", self.interface], capture_output=True, check=False)


class Addresses:
    """Hands out links; two test processes on one machine do not get the same one at a time."""

    def __init__(self) -> None:
        start = random.SystemRandom().randrange(_CHOICES)
        self._numbers = itertools.count(start)
        self._lock = threading.Lock()

    def take(self) -> Link:
        """A link whose address no pod of this machine has now."""
        with self._lock:
            taken = _interfaces()
            for number in itertools.islice(self._numbers, _CHOICES):
                high, low = divmod(number % _CHOICES, 256)
                link = Link(f"198.18.{high}.{low}", f"rdp{high:02x}{low:02x}")
                if low not in (0, 255) and link.interface not in taken:
                    return link
        raise NoNetwork("all pod addresses are taken")


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _ip(*lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNetwork(f"ip: {done.stderr.strip()} (in: {'; '.join(lines)})")
