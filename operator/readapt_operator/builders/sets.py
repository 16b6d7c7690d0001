"""ConfigMaps of a desired set: one per shard, with the administration key in the first."""

from __future__ import annotations

import json

from readapt_api import labels
from readapt_api.serving import SHARD_FILE, DesiredSet, split_set
from readapt_operator.builders.meta import Owner, child_meta, set_name
from readapt_operator.kube.resources import CONFIG_MAPS, Doc

ADMIN_KEY_FILE = "admin.pub"


def build_set(owner: Owner, desired: DesiredSet, admin_key: str) -> tuple[Doc, ...]:
    """The shards in order. Raises pydantic's ValidationError above MAX_SHARDS."""
    bodies = []
    for shard in split_set(desired):
        name = set_name(owner.name, desired.revision, shard.shard)
        data = {SHARD_FILE: json.dumps(shard.to_wire(), sort_keys=True)}
        if shard.shard == 0:
            data[ADMIN_KEY_FILE] = admin_key
        meta = child_meta(owner, name, owner.name, {labels.REVISION: desired.revision})
        bodies.append({"apiVersion": CONFIG_MAPS.api_version, "kind": CONFIG_MAPS.kind, "metadata": meta, "data": data})
    return tuple(bodies)
