"""Volumes of a played pod as folders of this machine; ConfigMaps are updated in place by a symlink swap."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from readapt_testing.kube import Kube, Object
from readapt_testing.player.sandbox import Mount

_DATA = "..data"


class Unplayable(Exception):
    """The pod asks for something that the player does not do; extend the player or do not ask."""


class NotYet(Exception):
    """A volume's content does not exist; a kubelet would wait and say so."""


@dataclass(frozen=True, slots=True)
class Volumes:
    """The volumes of one pod."""

    pod: Object
    folder: Path
    claims: Mapping[str, Path]
    kube: Kube

    def prepare(self) -> None:
        """Makes every folder; raises NotYet while a required ConfigMap, Secret or claim is missing."""
        for volume in self.pod["spec"].get("volumes", []):
            self._prepare(volume)

    def mounts(self, container: Object) -> tuple[Mount, ...]:
        """What the container mounts, shortest paths first, so that nested ones come after."""
        volumes = {v["name"]: v for v in self.pod["spec"].get("volumes", [])}
        wanted = sorted(container.get("volumeMounts", []), key=lambda m: len(m["mountPath"]))
        return tuple(self._mount(m, volumes[m["name"]]) for m in wanted)

    def config_map_changed(self, name: str, config_map: Object | None) -> None:
        """Brings the files of every volume of that ConfigMap up to date; gone: optional volumes become empty."""
        for volume in self.pod["spec"].get("volumes", []):
            source = volume.get("configMap")
            if source and source["name"] == name and (self.folder / volume["name"]).exists():
                _swap(self.folder / volume["name"], _files(config_map, source))

    def _prepare(self, volume: Object) -> None:
        name, folder = volume["name"], self.folder / volume["name"]
        match volume:
            case {"emptyDir": _}:
                folder.mkdir(parents=True, exist_ok=True, mode=0o777)
            case {"persistentVolumeClaim": claim}:
                if claim["claimName"] not in self.claims:
                    raise NotYet(f'persistentvolumeclaim "{claim["claimName"]}" not found')
            case {"configMap": source}:
                self._prepare_files(folder, source, "ConfigMap", source["name"])
            case {"secret": source}:
                self._prepare_files(folder, source, "Secret", source["secretName"])
            case _:
                raise Unplayable(f"volume {name}: {', '.join(k for k in volume if k != 'name')}")

    def _prepare_files(self, folder: Path, source: Object, kind: str, name: str) -> None:
        found = self.kube.get(kind, name, self.pod["metadata"]["namespace"])
        if found is None and not source.get("optional"):
            raise NotYet(f'{kind.lower()} "{name}" not found')
        folder.mkdir(parents=True, exist_ok=True)
        _swap(folder, _files(found, source))

    def _mount(self, mount: Object, volume: Object) -> Mount:
        if set(mount) - {"name", "mountPath", "readOnly"}:
            raise Unplayable(f"volume mount {mount}")
        claim = volume.get("persistentVolumeClaim")
        folder = self.claims[claim["claimName"]] if claim else self.folder / volume["name"]
        read_only = bool(mount.get("readOnly") or (claim or {}).get("readOnly"))
        return Mount(folder, mount["mountPath"], read_only or "configMap" in volume or "secret" in volume)


def _files(found: Object | None, source: Object) -> dict[str, bytes]:
    """File name to content; ``items`` picks and renames keys."""
    if found is None:
        return {}
    text = {k: v.encode() for k, v in (found.get("data") or {}).items()}
    if found.get("kind") == "Secret":
        text = {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
    binary = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
    content = text | binary
    if "items" not in source:
        return content
    return {item["path"]: content[item["key"]] for item in source["items"] if item["key"] in content}


def _swap(folder: Path, files: Mapping[str, bytes]) -> None:
    """The kubelet's atomic writer: a new folder, ``..data`` renamed onto it, links per key, the old folder gone."""
    data = folder / _DATA
    old = Path(os.readlink(data)).name if data.is_symlink() else None
    number = int(old.rpartition(".")[2]) + 1 if old else 0
    fresh = folder / f"..version.{number}"
    fresh.mkdir()
    for name, content in files.items():
        (fresh / name).write_bytes(content)
    link = folder / "..data_tmp"
    link.symlink_to(fresh.name)
    link.rename(data)
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in files:
            entry.unlink()
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_DATA}/{name}")
    if old:
        shutil.rmtree(folder / old)
