"""The command line. Results go to stdout, progress and errors to stderr; exit 1 when a person must look."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from readapt_cluster import binaries, catalog
from readapt_cluster.errors import ClusterError, Refused
from readapt_cluster.places import KUBECONFIG
from readapt_cluster.progress import say

_RUN = "python -m readapt_cluster"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    if sys.platform != "linux":
        sys.stderr.write("The local cluster runs on Linux only; elsewhere use `kind` or a cluster of your own.\n")
        return 1
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(arguments)
    except ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _up(arguments: argparse.Namespace) -> int:
    from readapt_cluster import node, standalone

    (standalone if arguments.control_plane else node).up()
    say(f"Up. Use it with: export KUBECONFIG={os.path.relpath(KUBECONFIG)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from readapt_cluster import node

    node.check(reuse=arguments.reuse)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from readapt_cluster import leftovers, node, standalone

    standalone.down()
    if os.geteuid() == 0 or leftovers.may_be_there():
        node.down(purge=arguments.purge)
    return 0


def _status(_: argparse.Namespace) -> int:
    from readapt_cluster import status

    table = status.rows()
    sys.stdout.write(status.text(table))
    return 0 if all(row.ready == "yes" for row in table) else 1


def _load(arguments: argparse.Namespace) -> int:
    from readapt_cluster import images, preflight

    preflight.require_root()
    for image in arguments.image:
        done = images.load(image)
        say(f"{done.image}: moved {done.moved_bytes / 1e6:.1f} MB, {done.kept_bytes / 1e6:.1f} MB were there")
    return 0


def _binaries(arguments: argparse.Namespace) -> int:
    unknown = [name for name in arguments.name if name not in catalog.BY_NAME]
    if unknown:
        raise Refused(f"No program {', '.join(unknown)}; there are {', '.join(catalog.BY_NAME)}.")
    wanted = [catalog.BY_NAME[name] for name in arguments.name] or list(catalog.ALL)
    binaries.ensure(wanted)
    sys.stdout.write(f"{binaries.path_folder()}\n")
    return 0


def _base_image(_: argparse.Namespace) -> int:
    from readapt_cluster import base_image

    sys.stdout.write(f"{base_image.ensure()}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_RUN,
        description="A real Kubernetes on this Debian machine, for Readapt's tests and demo.",
        epilog=_examples("up", "status", "load localhost/readapt/runtime:dev", "down"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    up = add("up", _up, "bring the cluster up and write .local/kubeconfig", "up", "up --control-plane")
    up.add_argument(
        "--control-plane",
        action="store_true",
        help="etcd, kube-apiserver and kube-controller-manager only: no root, no pods",
    )
    check = add("check", _check, "say what keeps a node from being brought up here; exit 0 when nothing does", "check")
    check.add_argument("--reuse", action="store_true", help="nothing does either when one of ours is up already")
    down = add("down", _down, "take the cluster down and leave nothing behind", "down", "down --purge")
    down.add_argument("--purge", action="store_true", help="remove the cluster's images and logs as well")
    add("status", _status, "show every component; exit 0 when all are ready", "status")
    load = add(
        "load", _load, "bring images from buildah's storage into the cluster", "load localhost/readapt/runtime:dev"
    )
    load.add_argument("image", nargs="+", metavar="IMAGE", help="name as `buildah images` shows it")
    build = add(
        "binaries", _binaries, "build what is missing; print a folder fit for PATH", "binaries", "binaries helm kubectl"
    )
    build.add_argument("name", nargs="*", metavar="NAME", help=", ".join(catalog.BY_NAME))
    add("base-image", _base_image, "make the base image of the project's Containerfiles; print its name", "base-image")
    return parser


def _examples(*commands: str) -> str:
    return "examples:\n" + "\n".join(f"  {_RUN} {command}" for command in commands)


def _interrupt(_: int, __: FrameType | None) -> None:
    """SIGTERM ends `up` like Ctrl-C does: what was started is taken down again."""
    raise KeyboardInterrupt
