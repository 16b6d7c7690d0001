"""The objects that a user would write, as YAML text: shown, applied, and changed by one line."""

from __future__ import annotations

from readapt_demo.cast import Cast, Role

NAMESPACE = "readapt-demo"
STORE_CLAIM = "readapt-store"
SOURCES_CLAIM = "models"


def base_model(cast: Cast, version: str) -> str:
    """The BaseModel, wishing for ``version``."""
    return f"""\
apiVersion: readapt.dev/v1alpha1
kind: BaseModel
metadata: {{name: {cast.base}, namespace: {NAMESPACE}}}
spec:
  store: {{claimName: {STORE_CLAIM}}}
  versions:
  - {{name: v1, source: {{uri: "pvc://{SOURCES_CLAIM}/base/v1"}}}}
  - {{name: v2, source: {{uri: "pvc://{SOURCES_CLAIM}/base/v2"}}}}
  version: {version}
  upgrade: {{maxParallelJobs: 1}}
  serving: {cast.serving}
"""


def lora_adapter(cast: Cast, role: Role) -> str:
    """The LoRAAdapter of a role."""
    rank = f", {role.rank}" if role.kind == "checkpoint" else ""
    source = f'{role.kind}: {{uri: "pvc://{SOURCES_CLAIM}/{role.name}/weights", baseVersion: v1{rank}}}'
    splits = "".join(
        f'    {split}: {{uri: "pvc://{SOURCES_CLAIM}/{role.name}/data/{split}.jsonl"}}\n'
        for split in ("train", "validation", "test")
    )
    wished = role.adaptation or cast.adaptation
    adaptation = f"  adaptation: {wished}\n" if wished else ""
    return f"""\
apiVersion: readapt.dev/v1alpha1
kind: LoRAAdapter
metadata: {{name: {role.name}, namespace: {NAMESPACE}}}
spec:
  baseModelRef: {{name: {cast.base}}}
  source:
    {source}
  data:
{splits}{adaptation}  gate: {cast.gate}
"""


def volumes(sources: str, store: str) -> str:
    """Namespace, and two claims bound to host folders of the one node."""
    return f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
{_volume(SOURCES_CLAIM, sources, "ReadOnlyMany")}---
{_volume(STORE_CLAIM, store, "ReadWriteMany")}"""


def _volume(claim: str, folder: str, mode: str) -> str:
    return f"""\
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {NAMESPACE}-{claim}}}
spec:
  capacity: {{storage: 20Gi}}
  accessModes: [{mode}]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {{namespace: {NAMESPACE}, name: {claim}}}
  hostPath: {{path: {folder}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {claim}, namespace: {NAMESPACE}}}
spec:
  accessModes: [{mode}]
  storageClassName: ""
  volumeName: {NAMESPACE}-{claim}
  resources: {{requests: {{storage: 20Gi}}}}
"""
