"""The whole machine as one Kubernetes node: what `up` does, step by step, and `down`."""

import shutil
from pathlib import Path

from readapt_cluster import (
    binaries,
    boot,
    cgroups,
    components,
    images,
    kubeconfig,
    leftovers,
    network,
    packages,
    preflight,
    standalone,
)
from readapt_cluster import node_config as config
from readapt_cluster.catalog import BY_NAME, CONTROL_PLANE, NODE
from readapt_cluster.certificates import Pair, require_cryptography
from readapt_cluster.commands import run, succeeds
from readapt_cluster.components import Credentials
from readapt_cluster.errors import Refused
from readapt_cluster.health import Layout, admin_api, dns_is_available, node_is_ready
from readapt_cluster.places import CLUSTER, KUBECONFIG, NODE_LOCK, NODE_RUN, NODE_STATE, private_folder
from readapt_cluster.progress import say, step

_PORT = 6443


def check(*, reuse: bool = False) -> None:
    """Whether a node may be brought up here, and with ``reuse`` whether one that is up may be used again.

    Tests take theirs down, so they want none to be there. Raises Refused, saying what to do instead.
    """
    preflight.require_root()
    if is_ready():
        if reuse:
            return
        raise Refused("A node is up on this machine, as the demo leaves it. Run `make cluster-down` first.")
    preflight.require_no_engine()
    preflight.require_disk()


def up() -> None:
    """Bring the node up, first clearing what a killed run left; on failure nothing stays but logs.

    Raises Refused, BuildFailed or ComponentFailed. A node that is up and ready is left alone; a checkout that did not
    bring it up gets its kubeconfig.
    """
    preflight.require_root()
    require_cryptography()
    with binaries.locked(NODE_LOCK):
        if is_ready():
            say("The node is up already.")
            if not KUBECONFIG.exists():
                _write_kubeconfig()
            return
        if standalone.processes():
            raise Refused("A control plane alone is up in this checkout. Run `make cluster-down` first.")
        preflight.require_disk()
        preflight.require_no_engine()
        packages.ensure(packages.NODE)
        preflight.require_network_free()
        binaries.ensure(CONTROL_PLANE + NODE)
        _build_images()
        if leftovers.found():
            with step("Clearing what an earlier run left behind", "5 s"):
                leftovers.clear()
        try:
            _bring_up()
        except BaseException:
            say("Failed; removing what was started (logs stay in /var/lib/readapt-cluster/log)")
            leftovers.clear()
            raise


def down(*, purge: bool = False) -> None:
    """Remove the node from the machine, in whatever state it is; `purge` removes images and logs too."""
    preflight.require_root()
    with binaries.locked(NODE_LOCK), step("Taking the node down", "5 s"):
        leftovers.clear(purge=purge)
        KUBECONFIG.unlink(missing_ok=True)


def is_ready() -> bool:
    """Whether the API server answers and the node reports Ready."""
    layout = Layout.read(NODE_STATE)
    return layout is not None and node_is_ready(admin_api(NODE_STATE, layout.endpoint))


def _write_kubeconfig() -> None:
    """Of the node that is up, for this checkout."""
    layout, pki = Layout.read(NODE_STATE), NODE_STATE / "pki"
    if layout is not None:
        admin = Pair(pki / "admin.crt", pki / "admin.key")
        kubeconfig.with_certificate(KUBECONFIG, layout.endpoint.url, pki / "ca.crt", admin)


def _bring_up() -> None:
    shutil.rmtree(NODE_STATE / "log", ignore_errors=True)
    private_folder(NODE_STATE)
    private_folder(NODE_RUN)
    layout = Layout.for_node(network.NODE_ADDRESS, _PORT)
    layout.save(NODE_STATE)
    network.set_up(NODE_STATE)
    cgroups.create()
    creds = Credentials.create(NODE_STATE, layout.endpoint.address)
    admin = admin_api(NODE_STATE, layout.endpoint)
    components.write_tokens(NODE_STATE, {})
    kubeconfig.with_certificate(KUBECONFIG, layout.endpoint.url, creds.ca.pair.certificate, creds.admin)
    engine = boot.start(config.containerd())
    with step("Starting the control plane", "8 s"):
        boot.control_plane(NODE_STATE, layout.endpoint, creds, KUBECONFIG, with_scheduler=True)
    with step("Starting the node's agents", "15 s"):
        boot.wait_for(engine, lambda: succeeds([*images.CTR, "version"]))
        _remove_old_containers()
        for image in (config.SANDBOX_IMAGE, _coredns_image()):
            if not images.is_loaded(image):
                images.load(image)
        agent = boot.start(config.kubelet(layout.endpoint, creds, layout.ports))
        boot.start(config.kube_proxy(layout.endpoint, creds, layout.ports))
        boot.wait_for(agent, lambda: node_is_ready(admin))
    with step("Starting the name server", "5 s"):
        run([binaries.path_of("kubectl"), f"--kubeconfig={KUBECONFIG}", "apply", "-f", CLUSTER / "manifests"])
        boot.wait_for(agent, lambda: dns_is_available(admin))


def _build_images() -> None:
    images.build(config.SANDBOX_IMAGE, "busybox.Containerfile", Path("/bin/busybox"))
    images.build(_coredns_image(), "coredns.Containerfile", binaries.path_of("coredns"))


def _coredns_image() -> str:
    return f"localhost/readapt/coredns:{BY_NAME['coredns'].version}"


def _remove_old_containers() -> None:
    """Records of an earlier run's pods, which containerd keeps beside the images it is to keep."""
    for container in run([*images.CTR, "containers", "ls", "--quiet"]).split():
        succeeds([*images.CTR, "containers", "rm", container])
