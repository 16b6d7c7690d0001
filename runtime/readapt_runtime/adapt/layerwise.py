"""Texts on their way through a base, layer by layer: what its modules see and answer, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.factors import SideFactors, attached
from readapt_runtime.adapt.tokens import batches

Tokens = list[Tensor]
"""[tokens, features] of each batch, padding left out."""


@dataclass(slots=True)
class _Batch:
    hidden: Tensor
    """[rows, length, features] before the next layer."""
    arguments: dict[str, Any]
    """What the model gives to every layer beside it: mask, positions, rotary embedding."""
    valid: Tensor
    """[rows, length] bool."""


class Stream:
    """Texts (token ids) before a layer of a base; padded on the right, so that positions count from 0."""

    def __init__(self, base: LoadedBase, texts: Sequence[Sequence[int]]) -> None:
        self._base = base
        order = batches([len(t) for t in texts], [1] * len(texts)) if texts else ()
        self._valid = torch.ones(0, 0, dtype=torch.bool)
        """Of the batch that is under way."""
        self._batches = [self._begin([texts[i] for i in indices]) for indices in order]

    def pass_layer(
        self,
        layer: int,
        factors: Mapping[str, SideFactors],
        inputs: Collection[str] = (),
        outputs: Collection[str] = (),
    ) -> dict[str, Tokens]:
        """Moves on behind ``layer`` with ``factors`` attached; what the named modules saw, or answered, on the way."""
        found: dict[str, Tokens] = {name: [] for name in (*inputs, *outputs)}
        with attached(self._base.model, factors), self._listening(found, inputs, outputs):
            for batch in self._batches:
                self._valid = batch.valid
                batch.hidden = self._run(layer, batch)
        return found

    def inputs(self, layer: int, factors: Mapping[str, SideFactors], module: str) -> Tokens:
        """What ``module`` of ``layer`` would see with ``factors`` attached; the stream stays where it is."""
        found: dict[str, Tokens] = {module: []}
        with attached(self._base.model, factors), self._listening(found, [module], (), stop=True):
            for batch in self._batches:
                self._valid = batch.valid
                try:
                    self._run(layer, batch)
                except _Seen:
                    continue
        return found[module]

    def _begin(self, rows: Sequence[Sequence[int]]) -> _Batch:
        """What the model hands to its first layer."""
        longest = max(len(row) for row in rows)
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._base.device)
        valid = torch.tensor(
            [[True] * len(row) + [False] * (longest - len(row)) for row in rows], device=self._base.device
        )
        caught: list[_Batch] = []

        def catch(_layer: nn.Module, args: tuple[Tensor, ...], arguments: dict[str, Any]) -> None:
            hidden = args[0] if args else arguments.pop("hidden_states")
            caught.append(_Batch(hidden, arguments, valid))
            raise _Seen

        handle = self._layer(0).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._base.model.base_model(input_ids=tokens, attention_mask=valid.long(), use_cache=False)
        except _Seen:
            pass
        finally:
            handle.remove()
        return caught[0]

    def _layer(self, number: int) -> nn.Module:
        return self._base.model.get_submodule(f"model.layers.{number}")

    def _run(self, layer: int, batch: _Batch) -> Tensor:
        found = self._layer(layer)(batch.hidden, **batch.arguments)
        hidden: Tensor = found[0] if isinstance(found, tuple) else found
        return hidden

    @contextmanager
    def _listening(
        self, found: dict[str, Tokens], inputs: Collection[str], outputs: Collection[str], stop: bool = False
    ) -> Iterator[None]:
        """Behind the hooks of ``attached``, so that an output has the factors' share."""

        def before(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[name].append(args[0][self._valid])
                if stop:
                    raise _Seen

            return hook

        def after(name: str) -> Any:
            def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
                found[name].append(output[self._valid])

            return hook

        module = self._base.model.get_submodule
        handles = [module(name).register_forward_pre_hook(before(name)) for name in inputs]
        handles += [module(name).register_forward_hook(after(name)) for name in outputs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Seen(Exception):
    """The module was reached; nothing behind it need be computed."""
