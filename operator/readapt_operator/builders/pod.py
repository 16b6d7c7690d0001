"""What Job and serving pods have in common: Pod Security ``restricted``, and the settings that users may give."""

from __future__ import annotations

from readapt_api.v1alpha1.shared import PodSettings
from readapt_operator.kube.resources import Doc

_USER = 65532
CONTAINER_SECURITY: Doc = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
TMP_VOLUME: Doc = {"name": "tmp", "emptyDir": {}}
TMP_MOUNT: Doc = {"name": "tmp", "mountPath": "/tmp"}
ENVIRONMENT: list[Doc] = [{"name": "HOME", "value": "/tmp"}]


def claim_volume(name: str, claim: str, read_only: bool) -> Doc:
    source: Doc = {"claimName": claim, **({"readOnly": True} if read_only else {})}
    return {"name": name, "persistentVolumeClaim": source}


def pod_template(spec: Doc, settings: PodSettings, labels: dict[str, str]) -> Doc:
    """A PodTemplateSpec: ``spec`` hardened and with the user's settings; our labels win over the user's."""
    hardened = {
        **spec,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_placement(settings),
    }
    if settings.resources is not None:
        resources = settings.resources.to_wire()
        hardened["containers"] = [{**c, "resources": resources} for c in spec["containers"]]
    meta: Doc = {"labels": {**settings.labels, **labels}}
    if settings.annotations:
        meta["annotations"] = dict(settings.annotations)
    return {"metadata": meta, "spec": hardened}


def _placement(settings: PodSettings) -> Doc:
    wire = settings.to_wire()
    keys = ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "imagePullSecrets")
    return {key: wire[key] for key in keys if wire.get(key)}
