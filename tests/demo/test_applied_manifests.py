"""What the demo applies is what the API takes, with the settings of each role."""

from __future__ import annotations

from pathlib import Path

import yaml

from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_demo import manifests
from readapt_demo.cast import Cast, Role

NOWHERE = Path("nowhere")
ADAPTER = Role("parcels", "adapter", NOWHERE, NOWHERE, adaptation="{policy: ReLoRA, tuning: {maxSteps: 50}}")
CHECKPOINT = Role("shifts", "checkpoint", NOWHERE, NOWHERE)
CAST = Cast("smollm2", NOWHERE, NOWHERE, (ADAPTER, CHECKPOINT))


def _adapter(role: Role) -> LoRAAdapterResource:
    return LoRAAdapterResource.model_validate(yaml.safe_load(manifests.lora_adapter(CAST, role)))


def test_a_role_has_settings_of_its_own_or_the_casts() -> None:
    own, shared = (_adapter(role).spec.adaptation for role in CAST.roles)
    assert (own.policy.value, own.tuning.max_steps) == ("ReLoRA", 50)
    assert (shared.policy.value, shared.tuning.max_steps) == ("Auto", 120)


def test_the_base_wishes_for_the_version_it_is_told() -> None:
    base = BaseModelResource.model_validate(yaml.safe_load(manifests.base_model(CAST, "v2")))
    assert base.spec.version == "v2"
    assert [version.name for version in base.spec.versions] == ["v1", "v2"]
