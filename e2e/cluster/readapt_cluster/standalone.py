"""`up --control-plane`: a control plane that stays up after the command, without root and without nodes."""

import shutil

from readapt_cluster import binaries, boot, components, kubeconfig
from readapt_cluster.catalog import CONTROL_PLANE
from readapt_cluster.certificates import require_cryptography
from readapt_cluster.components import Credentials
from readapt_cluster.errors import Refused
from readapt_cluster.health import Layout
from readapt_cluster.places import KUBECONFIG, LOCAL_STATE, NODE_STATE, private_folder
from readapt_cluster.processes import Running, of_state, stop
from readapt_cluster.progress import say, step

PROGRAMS = ("kube-controller-manager", "kube-apiserver", "etcd")


def up() -> None:
    """Start it, after clearing what is left of an earlier one. Does nothing when all of it runs.

    Raises Refused, BuildFailed or ComponentFailed; then nothing stays but logs.
    """
    require_cryptography()
    if of_state(["kube-apiserver"], [NODE_STATE]):
        raise Refused("A node is up on this machine. Use it, or run `make cluster-down` first.")
    if len(processes()) == len(PROGRAMS):
        say("The control plane is up already.")
        return
    binaries.ensure(CONTROL_PLANE)
    down()
    private_folder(LOCAL_STATE)
    layout = Layout.for_loopback()
    layout.save(LOCAL_STATE)
    at = layout.endpoint
    try:
        with step("Starting the control plane", "8 s"):
            creds = Credentials.create(LOCAL_STATE, at.address)
            components.write_tokens(LOCAL_STATE, {})
            kubeconfig.with_certificate(KUBECONFIG, at.url, creds.ca.pair.certificate, creds.admin)
            boot.control_plane(LOCAL_STATE, at, creds, KUBECONFIG, with_scheduler=False)
    except BaseException:
        _stop()
        raise


def down() -> None:
    """Stop it and remove its state."""
    if LOCAL_STATE.exists():
        _stop()
        shutil.rmtree(LOCAL_STATE)
        KUBECONFIG.unlink(missing_ok=True)


def processes() -> list[Running]:
    """The live ones of this checkout's control plane."""
    return of_state(PROGRAMS, [LOCAL_STATE])


def _stop() -> None:
    for program in PROGRAMS:
        stop([process.pid for process in processes() if process.program == program], grace_s=1.0)
