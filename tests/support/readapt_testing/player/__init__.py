"""Plays the kubelet where no node runs: pods of the real controllers run their real commands as processes.

Each container runs in namespaces of its own (network, mounts, processes) over a copy-on-write view of this machine's
root, so commands, mount paths, ports and addresses are exactly those of the pod; nothing is rewritten. Everything
ends with the process that started it. Differences to a node, on purpose: the image is this machine with the test's
environment first in PATH; processes run as root; resource limits and network policies are not enforced; restarts back
off from one second. A pod that asks for what is not played raises ``Unplayable`` instead of running differently.
"""

from readapt_testing.player.kubelet import Player
from readapt_testing.player.volumes import Unplayable

__all__ = ["Player", "Unplayable"]
