"""API group ``readapt.dev``, version ``v1alpha1``: ``BaseModel`` and ``LoRAAdapter``."""

GROUP = "readapt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
