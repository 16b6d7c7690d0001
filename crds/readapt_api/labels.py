"""Labels and annotations: how the operator, its children, people and tests find each other's objects."""

from __future__ import annotations

MANAGED_BY = "app.kubernetes.io/managed-by"
READAPT = "readapt"
"""Value of MANAGED_BY on every child."""
BASE = "readapt.dev/base"
"""Name of the BaseModel; on every child."""
ADAPTER = "readapt.dev/adapter"
"""Name of the LoRAAdapter; on its Jobs and request ConfigMaps."""
JOB_KIND = "readapt.dev/job-kind"
"""fetch, drift, extract or adapt; on Jobs, their pods and request ConfigMaps."""
REVISION = "readapt.dev/revision"
"""On serving Deployments, their pods and set ConfigMaps; the Service selects it."""
JOB_NAME = "batch.kubernetes.io/job-name"
"""The Job controller's own label on the pods of a Job."""

INPUT_HASH = "readapt.dev/input-hash"
"""Annotation of Jobs and request ConfigMaps: the work that they are for."""
OTHER_ITEMS = "readapt.dev/other-items"
"""Annotation of adapt Jobs and their request ConfigMaps: the work for other adapters that they do after their owner's,
as a JSON list of [uid, kind, input hash, retry]. Absent where there is none."""
ATTEMPT = "readapt.dev/attempt"
"""Annotation of Jobs: 1, 2, ... for one input hash."""
RETRY = "readapt.dev/retry"
"""Annotation of a user on BaseModel or LoRAAdapter: a new value makes stalled work start again. Copied to Jobs.

Where a Job told that the store lost an artifact, the object's sources are fetched again as well.
"""
BASE_DIGEST = "readapt.dev/base-digest"
"""Annotation of serving Deployments: the weights that they serve."""
VERSION = "readapt.dev/version"
"""Annotation of serving Deployments: what the version was called when the revision was made."""
RETIRED_AT = "readapt.dev/retired-at"
"""Annotation of serving Deployments: since when their pods are told to drain. Absent otherwise."""
