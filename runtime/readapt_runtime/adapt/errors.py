"""Errors of the adaptation.

Terminal
├── BadData     examples that cannot be used: malformed, too few, too many labels
├── Misfit      an adapter or a drift whose modules are not those of the base
└── Diverged    the loss of a search or a tuning is not a finite number
"""

from __future__ import annotations

from readapt_api.errors import Terminal


class BadData(Terminal):
    """The examples cannot be used as they are."""


class Misfit(Terminal):
    """Factors that do not belong to this base model."""


class Diverged(Terminal):
    """Search or tuning produced a loss that is not finite."""
