"""Errors of the adaptation.

Terminal
├── Misfit      an adapter or a drift whose modules are not those of the base
├── NoEffect    an adapter that does nothing for its task on the base that it is said to be made for
└── Diverged    the loss of a search or a tuning is not a finite number
"""

from __future__ import annotations

from readapt_api.errors import Terminal


class Misfit(Terminal):
    """Factors that do not belong to this base model."""


class NoEffect(Terminal):
    """With this adapter its stated base answers no better than alone."""


class Diverged(Terminal):
    """Search or tuning produced a loss that is not finite."""
