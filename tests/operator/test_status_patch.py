"""A merge patch must say what is gone (RFC 7386), and say nothing when nothing changed."""

from __future__ import annotations

from readapt_api.v1alpha1.base_model import AdapterCounts, BaseModelResource, UpgradeStatus
from readapt_operator.report import status_patch
from readapt_testing.fake_world import base_model

DONE = UpgradeStatus(started_at="2025-01-01T00:00:00Z", finished_at="2025-01-01T00:01:00Z", to_version="v1")


def resource() -> BaseModelResource:
    body = base_model()
    body["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    body["status"] = {"version": "v1", "upgrade": DONE.to_wire(), "adapters": {"total": 2}}
    return BaseModelResource.model_validate(body)


def test_what_is_gone_is_null_also_inside_objects() -> None:
    found = resource()
    begun = UpgradeStatus(started_at="2025-01-02T00:00:00Z", from_version="v1", to_version="v2")
    after = found.status.model_copy(update={"version": None, "upgrade": begun, "adapters": AdapterCounts(total=3)})
    patch = status_patch(found, after)["status"]
    assert patch["version"] is None
    assert patch["upgrade"] == {
        "startedAt": "2025-01-02T00:00:00Z",
        "finishedAt": None,
        "fromVersion": "v1",
        "toVersion": "v2",
    }
    assert patch["adapters"]["total"] == 3
    assert "versions" not in patch


def test_the_patch_names_exactly_what_was_read() -> None:
    meta = status_patch(resource(), resource().status)["metadata"]
    assert (meta["uid"], meta["resourceVersion"]) == ("u", "7")


def test_an_equal_status_changes_nothing() -> None:
    assert status_patch(resource(), resource().status)["status"] == {}
