"""The node's network: one bridge of our own, two iptables chains of our own, two kernel switches.

The node's address is the bridge's, so nothing of the cluster listens on the machine's real interfaces.
The chains double as the mark that Kubernetes' own chains (KUBE-*) on this machine are ours: both live and
die with the kernel's tables.
"""

import ipaddress
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from readapt_cluster.commands import run, succeeds
from readapt_cluster.components import POD_RANGE, SERVICE_RANGE
from readapt_cluster.errors import CommandFailed

BRIDGE = "readapt0"
NODE_ADDRESS = "10.244.0.1"
POD_SUBNET = "10.244.0.0/24"
_BRIDGE_MAC = "02:52:45:41:44:41"
_MARK = "READAPT-POSTROUTING"
_FORWARD = "READAPT-FORWARD"
_SWITCHES = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_FAMILIES = ("iptables", "ip6tables")


def set_up(state: Path) -> None:
    """Make the bridge, the chains and the switches; `state` remembers what the switches were."""
    for module in ("br_netfilter", "overlay"):
        succeeds(["modprobe", module])
    _save_switches(state / "switches.json")
    for switch in _SWITCHES:
        _switch(switch).write_text("1")
    run(["ip", "link", "add", BRIDGE, "address", _BRIDGE_MAC, "type", "bridge"])
    run(["ip", "addr", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    rules = [
        "*nat",
        f":{_MARK} - [0:0]",
        f"-A {_MARK} -s {POD_SUBNET} ! -d {POD_RANGE} -j MASQUERADE",
        f"-A POSTROUTING -j {_MARK}",
        "COMMIT",
        "*filter",
        f":{_FORWARD} - [0:0]",
        f"-A {_FORWARD} -i {BRIDGE} -j ACCEPT",
        f"-A {_FORWARD} -o {BRIDGE} -j ACCEPT",
        f"-A FORWARD -j {_FORWARD}",
        "COMMIT",
    ]
    run(["iptables-restore", "--noflush", "--wait"], stdin="\n".join(rules) + "\n")


def clear(state: Path) -> None:
    """Remove bridge, pods' cables, every chain of ours and of Kubernetes; put the switches back."""
    for cable in _cables():
        succeeds(["ip", "link", "delete", cable])
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run(["ip", "link", "delete", BRIDGE])
    if chains_are_ours():
        for family in _FAMILIES:
            _clear_chains(family)
    saved = state / "switches.json"
    if saved.exists():
        for switch, value in json.loads(saved.read_text()).items():
            _switch(switch).write_text(value)
        saved.unlink()


def kubernetes_chains() -> list[str]:
    """Names of Kubernetes' chains in the kernel's tables, whoever made them."""
    rules = "".join(_rules(family) for family in _FAMILIES)
    return sorted({line[1:].split()[0] for line in rules.splitlines() if line.startswith(":KUBE-")})


def chains_are_ours() -> bool:
    """Whether the chain that marks this machine's tables as ours is there."""
    return any(f":{mark} " in _rules("iptables") for mark in (_MARK, _FORWARD))


def conflicting_routes() -> list[str]:
    """Routes of other interfaces into the cluster's address ranges."""
    ours = [ipaddress.ip_network(text) for text in (POD_RANGE, SERVICE_RANGE)]
    found = []
    for route in json.loads(run(["ip", "-json", "-4", "route"]) or "[]"):
        target = route.get("dst", "default")
        if target == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.ip_network(target, strict=False)
        if any(network.overlaps(ipaddress.IPv4Network(own)) for own in ours):
            found.append(f"{target} dev {route.get('dev')}")
    return found


def cleaning_script(saved: str) -> str:
    """From `iptables-save`'s text, the input of `iptables-restore --noflush` that removes our chains."""
    script: list[str] = []
    chains: list[str] = []
    jumps: list[str] = []
    for line in saved.splitlines():
        words = line.split()
        if line.startswith("*"):
            chains, jumps = [], []
            script.append(line)
        elif line.startswith(":") and _is_ours(words[0][1:]):
            chains.append(words[0][1:])
        elif line.startswith("-A") and not _is_ours(words[1]) and _jumps_to_ours(words):
            jumps.append("-D" + line[2:])
        elif line == "COMMIT":
            script += [f":{chain} - [0:0]" for chain in chains]
            script += [*jumps, *(f"-X {chain}" for chain in chains), line]
    return "\n".join(script) + "\n"


def _is_ours(chain: str) -> bool:
    return chain.startswith(("KUBE-", "READAPT-"))


def _jumps_to_ours(words: list[str]) -> bool:
    return any(flag in ("-j", "-g") and _is_ours(target) for flag, target in pairwise(words))


def _clear_chains(family: str) -> None:
    saved = _rules(family)
    if "KUBE-" in saved or "READAPT-" in saved:
        run([f"{family}-restore", "--noflush", "--wait"], stdin=cleaning_script(saved))


def _rules(family: str) -> str:
    try:
        return run([f"{family}-save"])
    except CommandFailed:
        return ""


def _cables() -> Iterable[str]:
    """Host ends of the pods' veth pairs."""
    ports = Path(f"/sys/class/net/{BRIDGE}/brif")
    return sorted(port.name for port in ports.iterdir()) if ports.exists() else []


def _save_switches(path: Path) -> None:
    path.write_text(json.dumps({switch: _switch(switch).read_text().strip() for switch in _SWITCHES}))


def _switch(name: str) -> Path:
    return Path("/proc/sys") / name
