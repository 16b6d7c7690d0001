"""What the real API server accepts and refuses of our resources."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from readapt_testing.kube import Kube, KubeError, Object, path_of
from readapt_testing.manifests import DIGEST, OTHER_DIGEST, REMOVED, Edits, base_model, edited, lora_adapter

pytestmark = pytest.mark.control_plane

CHECKPOINT = {"uri": "pvc://models/full", "baseVersion": "v1"}
INPUTS = {"uri": "pvc://models/inputs.jsonl"}
RANKS = {"relativeError": "0.3", "budget": 1}
ONE_RANK = "exactly one of fixed, energy, relativeError and budget must be set"
ONE_SOURCE = "exactly one of adapter, checkpoint, train and tasks must be set"
LABEL_OF_41 = "a" * 41
URI_WANTED = "should match '^pvc://"


class Row(NamedTuple):
    """Edits of the valid manifest and a part of the server's message; an empty message: accepted."""

    id: str
    edits: dict[str, Any]
    message: str = ""


def version(name: str, uri: str = "pvc://models/x") -> Object:
    return {"name": name, "source": {"uri": uri}}


def task(name: str) -> Object:
    return {"name": name, "data": {split: {"uri": f"pvc://models/{name}/{split}"} for split in ("train", "validation")}}


TASKS = [task("one"), task("two")]

BASE_MODELS = [
    Row("shortest", {}),
    Row("name of 40", {"metadata.name": "a" * 40}),
    Row("name of 41", {"metadata.name": LABEL_OF_41}, "metadata.name must be a DNS-1035 label"),
    Row("name starts with a digit", {"metadata.name": "1model"}, "metadata.name must be a DNS-1035 label"),
    Row("name with a dot", {"metadata.name": "my.model"}, "metadata.name must be a DNS-1035 label"),
    Row("no spec", {"spec": REMOVED}, "spec: Required value"),
    Row("no store", {"spec.store": REMOVED}, "spec.store: Required value"),
    Row("store without claim", {"spec.store": {}}, "spec.store.claimName: Required value"),
    Row("store as uri", {"spec.store.uri": "s3://bucket"}, 'unknown field "spec.store.uri"'),
    Row("no versions", {"spec.versions": REMOVED}, "spec.versions: Required value"),
    Row("empty versions", {"spec.versions": []}, "spec.versions in body should have at least 1 items"),
    Row("16 versions", {"spec.versions": [version(f"v{i}") for i in range(16)]}),
    Row("17 versions", {"spec.versions": [version(f"v{i}") for i in range(17)]}, "must have at most 16 items"),
    Row("two versions of one name", {"spec.versions": [version("v1"), version("v1")]}, "Duplicate value"),
    Row("version of 41", {"spec.versions.1.name": LABEL_OF_41}, "may not be more than 40"),
    Row("version with capitals", {"spec.versions.1.name": "V2"}, "spec.versions[1].name in body should match"),
    Row("no wish", {"spec.version": REMOVED}, "spec.version: Required value"),
    Row("unknown wish", {"spec.version": "v3"}, "version must name an entry of versions"),
    Row("uri of another scheme", {"spec.versions.0.source.uri": "https://example.org/m"}, URI_WANTED),
    Row("uri without path", {"spec.versions.0.source.uri": "pvc://models"}, URI_WANTED),
    Row("uri with an empty path", {"spec.versions.0.source.uri": "pvc://models/"}, URI_WANTED),
    Row("uri that leaves the claim", {"spec.versions.0.source.uri": "pvc://models/../etc"}, URI_WANTED),
    Row("uri with a dot folder", {"spec.versions.0.source.uri": "pvc://models/./v1"}, URI_WANTED),
    Row("uri with a hidden folder", {"spec.versions.0.source.uri": "pvc://models/.git/v1"}, URI_WANTED),
    Row("uri with a blank", {"spec.versions.0.source.uri": "pvc://models/my model"}, URI_WANTED),
    Row("uri with user info", {"spec.versions.0.source.uri": "pvc://me:secret@models/v1"}, URI_WANTED),
    Row("uri with deep path", {"spec.versions.0.source.uri": "pvc://my-claim.x/a/b_c@1+2=3,4/d.e-f"}),
    Row("uri of 513", {"spec.versions.0.source.uri": "pvc://m/" + "a" * 505}, "may not be more than 512"),
    Row("digest", {"spec.versions.0.source.digest": DIGEST}),
    Row("short digest", {"spec.versions.0.source.digest": DIGEST[:-1]}, "should match '^sha256:[0-9a-f]{64}$'"),
    Row("digest in capitals", {"spec.versions.0.source.digest": DIGEST.upper()}, "should match '^sha256:"),
    Row("secretRef comes later", {"spec.versions.0.source.secretRef": {"name": "x"}}, "unknown field"),
    Row("suspended", {"spec.suspend": True}),
    Row("unknown strategy", {"spec.upgrade.strategy": "Rolling"}, 'Unsupported value: "Rolling"'),
    Row("unknown straggler policy", {"spec.upgrade.stragglers": "Drop"}, 'Unsupported value: "Drop"'),
    Row("unknown promotion", {"spec.upgrade.promotion": "Manual"}, 'Unsupported value: "Manual"'),
    Row("no parallel jobs", {"spec.upgrade.maxParallelJobs": 0}, "should be greater than or equal to 1"),
    Row("65 parallel jobs", {"spec.upgrade.maxParallelJobs": 65}, "should be less than or equal to 64"),
    Row("history comes later", {"spec.upgrade.historyLimit": 3}, "unknown field"),
    Row("scaled to zero", {"spec.serving.replicas": 0}),
    Row("negative replicas", {"spec.serving.replicas": -1}, "should be greater than or equal to 0"),
    Row("1001 replicas", {"spec.serving.replicas": 1001}, "should be less than or equal to 1000"),
    Row("replicas as text", {"spec.serving.replicas": "1"}, "must be of type integer"),
    Row("tiny context", {"spec.serving.maxModelLen": 15}, "should be greater than or equal to 16"),
    Row("rank 513", {"spec.serving.maxRank": 513}, "should be less than or equal to 512"),
    Row("eight ranks", {"spec.serving.tensorParallel": 8}),
    Row("nine ranks", {"spec.serving.tensorParallel": 9}, "should be less than or equal to 8"),
    Row("no rank", {"spec.serving.tensorParallel": 0}, "should be greater than or equal to 1"),
    Row("pool in megabytes", {"spec.serving.poolMemory": "512Mi"}),
    Row("pool in decimal gigabytes", {"spec.serving.poolMemory": "4G"}),
    Row("pool with a fraction", {"spec.serving.poolMemory": "1.5Gi"}),
    Row("pool in thousandths", {"spec.serving.poolMemory": "500m"}, "spec.serving.poolMemory in body should match"),
    Row("no pool", {"spec.serving.poolMemory": "0"}, "must be an amount of memory above 0"),
    Row("no pool in gigabytes", {"spec.serving.poolMemory": "0.0Gi"}, "must be an amount of memory above 0"),
    Row("pool without number", {"spec.serving.poolMemory": "lots"}, "spec.serving.poolMemory in body should match"),
    Row("host memory in megabytes", {"spec.serving.hostMemory": "512Mi"}),
    Row("no host memory", {"spec.serving.hostMemory": "0"}, "must be an amount of memory above 0"),
    Row(
        "host memory without number",
        {"spec.serving.hostMemory": "lots"},
        "spec.serving.hostMemory in body should match",
    ),
    Row("early abort and tenants", {"spec.serving.firstTokenSeconds": 6, "spec.serving.tenantHeader": "X-Tenant"}),
    Row("no time for a first token", {"spec.serving.firstTokenSeconds": 0}, "should be greater than or equal to 1"),
    Row("no name of a header", {"spec.serving.tenantHeader": "x y"}, "spec.serving.tenantHeader in body should match"),
    Row("dtype BFloat16", {"spec.serving.dtype": "BFloat16"}),
    Row("dtype of another case", {"spec.serving.dtype": "float32"}, 'Unsupported value: "float32"'),
    Row("free pod template", {"spec.serving.pod.hostNetwork": True}, "unknown field"),
    Row("security settings", {"spec.serving.pod.securityContext": {}}, "unknown field"),
    Row("resources", {"spec.serving.pod.resources": {"requests": {"cpu": "1500m", "memory": "2Gi"}}}),
    Row("toleration", {"spec.jobs.pod.tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]}),
    Row("bad quantity", {"spec.jobs.pod.resources.limits": {"cpu": "one"}}, "should match"),
    Row("no attempts", {"spec.jobs.maxAttempts": 0}, "should be greater than or equal to 1"),
    Row("21 attempts", {"spec.jobs.maxAttempts": 21}, "should be less than or equal to 20"),
    Row("short deadline", {"spec.jobs.activeDeadlineSeconds": 59}, "should be greater than or equal to 60"),
    Row("queue comes later", {"spec.jobs.queueName": "q"}, "unknown field"),
]
ADAPTERS = [
    Row("shortest", {}),
    Row("without data", {"spec.data": REMOVED}),
    Row("name of 41", {"metadata.name": LABEL_OF_41}, "metadata.name must be a DNS-1035 label"),
    Row("no base", {"spec.baseModelRef": REMOVED}, "spec.baseModelRef: Required value"),
    Row("base of 41", {"spec.baseModelRef.name": LABEL_OF_41}, "may not be more than 40"),
    Row("base in another namespace", {"spec.baseModelRef.namespace": "x"}, "unknown field"),
    Row("served name", {"spec.servedName": "Support.Intents_2"}),
    Row("served name with a slash", {"spec.servedName": "a/b"}, "spec.servedName in body should match"),
    Row("served name of 64", {"spec.servedName": "a" * 64}, "may not be more than 63"),
    Row("no source", {"spec.source": {}}, ONE_SOURCE),
    Row("two sources", {"spec.source.checkpoint": CHECKPOINT}, ONE_SOURCE),
    Row("train", {"spec.source": {"train": {}}}),
    Row("train without data", {"spec.source": {"train": {}}, "spec.data": REMOVED}, "source.train learns from data"),
    Row("alpha 0", {"spec.source": {"train": {"alpha": 0}}}, "should be greater than or equal to 1"),
    Row("tasks", {"spec.source": {"tasks": TASKS}, "spec.data": REMOVED}),
    Row("tasks and data", {"spec.source": {"tasks": TASKS}}, "each task of source.tasks has its own data"),
    Row("no tasks", {"spec.source": {"tasks": []}, "spec.data": REMOVED}, "should have at least 1 items"),
    Row(
        "17 tasks",
        {"spec.source": {"tasks": [task(f"t{i}") for i in range(17)]}, "spec.data": REMOVED},
        "must have at most 16 items",
    ),
    Row("a task twice", {"spec.source": {"tasks": [TASKS[0], TASKS[0]]}, "spec.data": REMOVED}, "Duplicate value"),
    Row("a task without data", {"spec.source": {"tasks": [{"name": "a"}]}, "spec.data": REMOVED}, "Required value"),
    Row("adapter without version", {"spec.source.adapter.baseVersion": REMOVED}, "baseVersion: Required value"),
    Row("adapter outside", {"spec.source.adapter.uri": "pvc://models/a/../../b"}, URI_WANTED),
    Row("checkpoint", {"spec.source": {"checkpoint": CHECKPOINT}}),
    Row("fixed rank", {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"fixed": 8}}}}),
    Row(
        "both ranks",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"fixed": 8, "energy": "0.9"}}}},
        ONE_RANK,
    ),
    Row(
        "all ranks",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {**RANKS, "fixed": 8, "energy": "0.9"}}}},
        ONE_RANK,
    ),
    Row(
        "no rank",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {}}}},
        ONE_RANK,
    ),
    Row("relative error", {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"relativeError": "0.3"}}}}),
    Row(
        "relative error of one",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"relativeError": "1.0"}}}},
        "relativeError must be above 0 and below 1",
    ),
    Row(
        "relative error of zero",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"relativeError": "0"}}}},
        "relativeError must be above 0 and below 1",
    ),
    Row(
        "relative error as a number",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"relativeError": 0.3}}}},
        "must be of type string",
    ),
    Row("budget", {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"budget": 1 << 40}}}}),
    Row(
        "budget of nothing",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"budget": 0}}}},
        "should be greater than or equal to 1",
    ),
    Row(
        "budget without end",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"budget": (1 << 40) + 1}}}},
        "should be less than or equal to 1099511627776",
    ),
    Row(
        "budget as a share",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"budget": "0.5"}}}},
        "must be of type integer",
    ),
    Row(
        "budget beside a rank",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"budget": 1, "fixed": 8}}}},
        ONE_RANK,
    ),
    Row(
        "two targets",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"relativeError": "0.3", "energy": "0.9"}}}},
        ONE_RANK,
    ),
    Row(
        "energy of zero",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"energy": "0.0"}}}},
        "energy must be above 0 and at most 1",
    ),
    Row("energy of one", {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"energy": "1"}}}}),
    Row(
        "energy above one",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"energy": "1.01"}}}},
        "energy must be above 0 and at most 1",
    ),
    Row(
        "rank 0",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "rank": {"fixed": 0}}}},
        "should be greater than or equal to 1",
    ),
    Row(
        "module twice",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "targetModules": ["q_proj", "q_proj"]}}},
        "Duplicate value",
    ),
    Row(
        "module as a pattern",
        {"spec.source": {"checkpoint": {**CHECKPOINT, "targetModules": [".*proj"]}}},
        "targetModules[0] in body should match",
    ),
    Row("no validation data", {"spec.data.validation": REMOVED}, "train and validation are given together"),
    Row("no train data", {"spec.data.train": REMOVED}, "train and validation are given together"),
    Row("empty data", {"spec.data": {}}, "train and validation, or inputs, must be set"),
    Row("inputs beside train", {"spec.data.inputs": INPUTS}),
    Row("inputs alone", {"spec.data": {"inputs": INPUTS}, "spec.gate.metric": "Agreement"}),
    Row("inputs alone and labels", {"spec.data": {"inputs": INPUTS}}, "metric must be Agreement"),
    Row("inputs alone, not gated", {"spec.data": {"inputs": INPUTS}, "spec.gate.mode": "Skip"}),
    Row(
        "inputs alone to retrain on",
        {"spec.data": {"inputs": INPUTS}, "spec.gate.metric": "Agreement", "spec.adaptation.policy": "Retrain"},
        "policy must be Auto, Copy, Transport or Refresh",
    ),
    Row(
        "inputs and a test",
        {"spec.data": {"inputs": INPUTS, "test": INPUTS}, "spec.gate.metric": "Agreement"},
        "test is given with train and validation",
    ),
    Row("empty prompt field", {"spec.data.promptField": ""}, "should be at least 1 chars long"),
    *(
        Row(f"policy {p}", {"spec.adaptation.policy": p})
        for p in ("Auto", "Copy", "Transport", "ReLoRA", "Refresh", "Retrain")
    ),
    Row("unknown policy", {"spec.adaptation.policy": "Merge"}, 'Unsupported value: "Merge"'),
    Row("retention above one", {"spec.adaptation.minRetention": "1.5"}, "must be at least 0 and at most 1"),
    Row("retention as a number", {"spec.adaptation.minRetention": 0.9}, "must be of type string"),
    Row("negative retention", {"spec.adaptation.minRetention": "-0.1"}, "minRetention in body should match"),
    Row("only the fixed trials", {"spec.adaptation.search.trials": 4}),
    Row("three trials", {"spec.adaptation.search.trials": 3}, "should be greater than or equal to 4"),
    Row("65 trials", {"spec.adaptation.search.trials": 65}, "should be less than or equal to 64"),
    Row("learning rate 5e-4", {"spec.adaptation.tuning.learningRate": "5e-4"}),
    Row("learning rate as text", {"spec.adaptation.tuning.learningRate": "fast"}, "learningRate in body should match"),
    Row("learning rate 0", {"spec.adaptation.tuning.learningRate": "0e-4"}, "learningRate must be above 0"),
    Row("learning rate 2", {"spec.adaptation.tuning.learningRate": "2"}, "learningRate must be above 0 and at most 1"),
    Row("no steps", {"spec.adaptation.tuning.maxSteps": 0}, "should be greater than or equal to 1"),
    *(Row(f"metric {m}", {"spec.gate.metric": m}) for m in ("Accuracy", "ExactMatch", "F1", "Agreement", "TokenLoss")),
    Row("unknown metric", {"spec.gate.metric": "Rouge"}, 'Unsupported value: "Rouge"'),
    Row("gate skipped", {"spec.gate.mode": "Skip"}),
    Row("gate skipped without data", {"spec.gate.mode": "Skip", "spec.data": REMOVED}),
    Row("gate skipped, by Copy", {"spec.gate.mode": "Skip", "spec.adaptation.policy": "Copy"}),
    Row(
        "gate skipped, by ReLoRA",
        {"spec.gate.mode": "Skip", "spec.adaptation.policy": "ReLoRA"},
        "a skipped gate moves by Copy: policy must be Auto or Copy",
    ),
    Row("unknown gate mode", {"spec.gate.mode": "Warn"}, 'Unsupported value: "Warn"'),
    Row("no regression allowed", {"spec.gate.maxRegression": "0"}, "maxRegression must be above 0 and below 1"),
    Row("all regression allowed", {"spec.gate.maxRegression": "1"}, "maxRegression must be above 0 and below 1"),
    Row("regression in points", {"spec.gate.maxRegression": "3"}, "a share: 0.03 are 3 points"),
    Row("a coin's confidence", {"spec.gate.confidence": "0.5"}, "confidence must be above 0.5 and at most 0.9999"),
    Row("certainty", {"spec.gate.confidence": "1"}, "confidence must be above 0.5 and at most 0.9999"),
    Row("too high a priority", {"spec.serving.priority": 101}, "should be less than or equal to 100"),
    Row("a preload that is a word", {"spec.serving.preload": "yes"}, "must be of type boolean"),
    Row("nine samples", {"spec.gate.maxSamples": 9}, "should be greater than or equal to 10"),
]
BASE_UPDATES = [
    Row("wish changes", {"spec.version": "v2"}),
    Row("store changes", {"spec.store.claimName": "other"}, "store is immutable"),
    Row("uri changes", {"spec.versions.0.source.uri": "pvc://models/new"}, "uri is immutable"),
    Row("version is added", {"spec.versions": [version(n, f"pvc://models/{n}") for n in ("v1", "v2", "v3")]}),
    Row("unused version goes", {"spec.versions": [version("v1", "pvc://models/v1")]}),
    Row(
        "wished version goes with the wish",
        {"spec.versions": [version("v2", "pvc://models/v2")], "spec.version": "v2"},
        "the version that was wished for until now cannot be removed in the same step",
    ),
    Row("digest is set", {"spec.versions.0.source.digest": DIGEST}),
    Row("replicas change", {"spec.serving.replicas": 3}),
]
ADAPTER_UPDATES = [
    Row("base changes", {"spec.baseModelRef.name": "other"}, "baseModelRef is immutable"),
    Row("served name appears", {"spec.servedName": "x"}, "servedName cannot change, appear or disappear"),
    Row("uri changes", {"spec.source.adapter.uri": "pvc://models/new"}, "uri is immutable"),
    Row("kind of source changes", {"spec.source": {"checkpoint": CHECKPOINT}}, "the kind of source is immutable"),
    Row("base version changes", {"spec.source.adapter.baseVersion": "v2"}, "baseVersion is immutable"),
    Row("train data change", {"spec.data.train.uri": "pvc://models/new"}, "uri is immutable"),
    Row("test data appear", {"spec.data.test": {"uri": "pvc://models/t"}}),
    Row("inputs appear", {"spec.data.inputs": {"uri": "pvc://models/i"}}),
    Row("the gate is skipped from now on", {"spec.gate.mode": "Skip"}),
    Row("gate changes", {"spec.gate.maxRegression": "0.05"}),
    Row("digest is set", {"spec.source.adapter.digest": DIGEST}),
]

TASKS_UPDATES = [
    Row("a task is appended", {"spec.source.tasks": [*TASKS, task("three")]}),
    Row("all places are taken", {"spec.source.tasks": [*TASKS, *(task(f"t{i}") for i in range(14))]}),
    Row("a task comes first", {"spec.source.tasks": [task("zero"), *TASKS]}, "tasks can only be appended"),
    Row("a task comes between", {"spec.source.tasks": [TASKS[0], task("x"), TASKS[1]]}, "tasks can only be appended"),
    Row("tasks change places", {"spec.source.tasks": TASKS[::-1]}, "tasks can only be appended"),
    Row("a task goes", {"spec.source.tasks": TASKS[:1]}, "tasks can only be appended"),
    Row("a task is replaced", {"spec.source.tasks": [TASKS[0], task("other")]}, "tasks can only be appended"),
    Row("a task's data change", {"spec.source.tasks.0.data.train.uri": "pvc://models/new"}, "uri is immutable"),
    Row("a task's rank changes", {"spec.source.tasks.1.rank": 4}, "rank is immutable"),
    Row("a task's steps change", {"spec.source.tasks.1.maxSteps": 4}, "maxSteps is immutable"),
    Row("a task's digest is set", {"spec.source.tasks.1.data.train.digest": DIGEST}),
    Row(
        "training instead", {"spec.source": {"train": {}}, "spec.data": TASKS[0]["data"]}, "kind of source is immutable"
    ),
]

TRAIN_UPDATES = [
    Row("alpha changes", {"spec.source.train.alpha": 8}, "alpha is immutable"),
    Row("learning rate changes", {"spec.source.train.learningRate": "1e-4"}, "learningRate is immutable"),
    Row("modules go", {"spec.source.train.targetModules": REMOVED}, "targetModules is immutable"),
    Row("data go", {"spec.data": REMOVED}, "source.train learns from data"),
]

CHECKPOINT_UPDATES = [
    Row("base version changes", {"spec.source.checkpoint.baseVersion": "v2"}, "baseVersion is immutable"),
    Row("rank changes", {"spec.source.checkpoint.rank.energy": "0.9"}, "rank is immutable"),
    Row("rank becomes a budget", {"spec.source.checkpoint.rank": {"budget": 1000}}, "rank is immutable"),
    Row("rank becomes fixed", {"spec.source.checkpoint.rank": {"fixed": 8}}, "rank is immutable"),
    Row("largest rank changes", {"spec.source.checkpoint.maxRank": 32}, "maxRank is immutable"),
    Row("modules change", {"spec.source.checkpoint.targetModules": ["q_proj"]}, "targetModules is immutable"),
    Row("modules go", {"spec.source.checkpoint.targetModules": REMOVED}, "targetModules is immutable"),
    Row("modules in another order", {"spec.source.checkpoint.targetModules": ["v_proj", "q_proj"]}),
    Row("digest is set", {"spec.source.checkpoint.digest": DIGEST}),
]


def ids(row: Row) -> str:
    return row.id


def refusal(kube: Kube, document: Object, namespace: str) -> str:
    """The server's message for a strict dry-run create; empty when it accepts."""
    path = path_of(document["kind"], namespace)
    try:
        kube.request("POST", path, json_body=document, params={"dryRun": "All", "fieldValidation": "Strict"})
    except KubeError as error:
        return error.message
    return ""


def check(row: Row, message: str) -> None:
    if row.message:
        assert row.message in message
    else:
        assert message == ""


@pytest.mark.parametrize("row", BASE_MODELS, ids=ids)
def test_base_model(row: Row, kube: Kube) -> None:
    check(row, refusal(kube, edited(base_model(), row.edits), "default"))


@pytest.mark.parametrize("row", ADAPTERS, ids=ids)
def test_lora_adapter(row: Row, kube: Kube) -> None:
    check(row, refusal(kube, edited(lora_adapter(), row.edits), "default"))


def update(kube: Kube, namespace: str, before: Object, edits: Edits) -> str:
    stored = kube.create(before, namespace)
    try:
        kube.replace(edited(stored, edits), namespace)
    except KubeError as error:
        return error.message
    return ""


@pytest.mark.parametrize("row", BASE_UPDATES, ids=ids)
def test_update_of_base_model(row: Row, kube: Kube, namespace: str) -> None:
    check(row, update(kube, namespace, base_model(), row.edits))


@pytest.mark.parametrize("row", ADAPTER_UPDATES, ids=ids)
def test_update_of_lora_adapter(row: Row, kube: Kube, namespace: str) -> None:
    check(row, update(kube, namespace, lora_adapter(), row.edits))


@pytest.mark.parametrize("row", CHECKPOINT_UPDATES, ids=ids)
def test_update_of_a_checkpoint(row: Row, kube: Kube, namespace: str) -> None:
    source = {**CHECKPOINT, "targetModules": ["q_proj", "v_proj"]}
    check(row, update(kube, namespace, edited(lora_adapter(), {"spec.source": {"checkpoint": source}}), row.edits))


@pytest.mark.parametrize("row", TRAIN_UPDATES, ids=ids)
def test_update_of_a_training(row: Row, kube: Kube, namespace: str) -> None:
    source = {"train": {"targetModules": ["q_proj", "v_proj"]}}
    check(row, update(kube, namespace, edited(lora_adapter(), {"spec.source": source}), row.edits))


@pytest.mark.parametrize("row", TASKS_UPDATES, ids=ids)
def test_update_of_tasks(row: Row, kube: Kube, namespace: str) -> None:
    before = edited(lora_adapter(), {"spec.source": {"tasks": TASKS}, "spec.data": REMOVED})
    check(row, update(kube, namespace, before, row.edits))


@pytest.mark.parametrize(("digest", "accepted"), [(DIGEST, True), (OTHER_DIGEST, False), (REMOVED, False)])
def test_digest_is_set_once(digest: object, accepted: bool, kube: Kube, namespace: str) -> None:
    pinned = edited(base_model(), {"spec.versions.0.source.digest": DIGEST})
    message = update(kube, namespace, pinned, {"spec.versions.0.source.digest": digest})

    check(Row("", {}, "" if accepted else "digest can be set once"), message)


@pytest.mark.parametrize(("name", "accepted"), [("x", True), ("y", False), (REMOVED, False)])
def test_served_name_neither_changes_nor_goes(name: object, accepted: bool, kube: Kube, namespace: str) -> None:
    message = update(kube, namespace, edited(lora_adapter(), {"spec.servedName": "x"}), {"spec.servedName": name})

    check(Row("", {}, "" if accepted else "servedName cannot change"), message)


def test_served_version_cannot_be_removed(kube: Kube, namespace: str) -> None:
    kube.create(base_model(), namespace)
    kube.patch("BaseModel", "model", {"status": {"version": "v1"}}, namespace, "status")
    kube.patch("BaseModel", "model", {"spec": {"version": "v2"}}, namespace)
    stored = kube.get("BaseModel", "model", namespace) or {}

    with pytest.raises(KubeError, match="the version that is being served cannot be removed from versions"):
        kube.replace(edited(stored, {"spec.versions": [version("v2", "pvc://models/v2")]}), namespace)
    kube.delete("BaseModel", "model", namespace)
