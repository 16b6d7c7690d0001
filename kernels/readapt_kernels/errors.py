"""What a launcher refuses, before anything runs.

KernelError
├── UnsupportedLayout   a shape, stride, dtype or device that the kernels do not compute: a person must act
└── WorkTooLarge        a batch beyond the fixed maxima of the static buffers: the caller did not keep its own limits
"""

from __future__ import annotations


class KernelError(ValueError):
    """Base of this package's errors."""


class UnsupportedLayout(KernelError):
    """A shape, stride, dtype or device that the kernels do not compute."""


class WorkTooLarge(KernelError):
    """A batch does not fit the fixed maxima of the static buffers."""
