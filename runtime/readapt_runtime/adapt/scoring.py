"""Accuracy: is the right completion the likeliest of all?

The choices are the distinct completions of the training file. A choice's score is its log-likelihood after the prompt
divided by its number of tokens. EOS belongs to a choice when some choice is the beginning of another (" card",
" card payment": without an end they would be compared by noise); a set without such pairs needs no end.

A question is one row of one forward pass: the prompt once, behind it the trie of all choices, each node attending to
the prompt and to its ancestors only and standing at the position it would have alone. Leaves are never computed, so
choices of one token cost nothing beyond the prompt. Equals one pass per choice (see the tests), at a fraction of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.tokens import batches, causal, joint_ids, shared

METRIC_VERSION = 2
"""Raised when answers change for equal inputs: cached answers then no longer count."""


@dataclass(frozen=True, slots=True)
class Trie:
    """All choices as they continue one prompt; node 0 is the last token of the prompt."""

    tokens: tuple[int, ...]
    """Token of node i + 1."""
    parents: tuple[int, ...]
    """Parent node of node i + 1; always smaller than i + 1."""
    depths: tuple[int, ...]
    """Steps of node i + 1 from node 0."""
    reads: tuple[tuple[tuple[int, int], ...], ...]
    """Per choice: (node whose prediction is read, token that is looked up), token by token."""


@dataclass(frozen=True, slots=True)
class Question:
    """One example, ready to be asked."""

    context: tuple[int, ...]
    trie: Trie


def needs_end(choices: Sequence[str]) -> bool:
    """Whether some choice is the beginning of another; neighbours in sorted order tell."""
    ordered = sorted(choices)
    return any(b.startswith(a) for a, b in pairwise(ordered))


def prepare(base: LoadedBase, prompts: Sequence[str], choices: Sequence[str]) -> list[Question]:
    """Tokenises every prompt with every choice and shares what is common."""
    end = (base.eos,) if needs_end(choices) else ()
    tries: dict[tuple[tuple[int, ...], ...], Trie] = {}
    questions = []
    for prompt in prompts:
        rows = joint_ids(base, [prompt, *(prompt + choice for choice in choices)])
        context = max(1, min(shared(rows), min(len(row) for row in rows[1:]) - 1))
        tails = tuple((*row[context:], *end) for row in rows[1:])
        if tails not in tries:
            tries[tails] = grow(tails)
        room = base.max_tokens - len(tries[tails].tokens)
        kept = tuple(rows[0][:context])[-max(1, room) :]
        questions.append(Question(kept, tries[tails]))
    return questions


def grow(tails: Sequence[tuple[int, ...]]) -> Trie:
    """The trie of the choices' tokens without its leaves."""
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for tail in tails:
        for length in range(1, len(tail)):
            nodes.setdefault(tail[:length], len(nodes))
    inner = [prefix for prefix in nodes if prefix]
    return Trie(
        tokens=tuple(prefix[-1] for prefix in inner),
        parents=tuple(nodes[prefix[:-1]] for prefix in inner),
        depths=tuple(len(prefix) for prefix in inner),
        reads=tuple(tuple((nodes[tail[:i]], token) for i, token in enumerate(tail)) for tail in tails),
    )


@torch.inference_mode()
def choice_scores(base: LoadedBase, questions: Sequence[Question]) -> Tensor:
    """[questions, choices] fp64 length-normalised log-likelihoods on the CPU, for whatever is attached now."""
    found = torch.empty(len(questions), len(questions[0].trie.reads), dtype=torch.float64)
    lengths = [len(q.context) + len(q.trie.tokens) for q in questions]
    for batch in batches(lengths, [1 + len(q.trie.tokens) for q in questions]):
        found[batch] = scores(base, [questions[i] for i in batch]).cpu()
    return found


def scores(base: LoadedBase, questions: Sequence[Question]) -> Tensor:
    """The same in one forward pass, with gradient, on the base's device; equally many choices each."""
    rows = _log_probabilities(base, questions)
    return torch.stack([_look_up(row, q.trie) for row, q in zip(rows, questions, strict=True)])


def _look_up(row: Tensor, trie: Trie) -> Tensor:
    """[1 + nodes, vocab] log-probabilities -> [choices] mean over each choice's tokens."""
    device = row.device
    nodes = torch.tensor([node for read in trie.reads for node, _ in read], device=device)
    tokens = torch.tensor([token for read in trie.reads for _, token in read], device=device)
    owner = torch.tensor([i for i, read in enumerate(trie.reads) for _ in read], device=device)
    totals = torch.zeros(len(trie.reads), dtype=torch.float64, device=device)
    totals = totals.index_add_(0, owner, row[nodes, tokens].double())
    return totals / torch.tensor([len(read) for read in trie.reads], device=device)


def _log_probabilities(base: LoadedBase, questions: Sequence[Question]) -> Iterator[Tensor]:
    """Per question [1 + nodes, vocab] fp32; one forward pass over prompts and tries."""
    longest = max(len(q.context) for q in questions)
    widest = max(len(q.trie.tokens) for q in questions)
    tokens = torch.zeros(len(questions), longest + widest, dtype=torch.long)
    positions = torch.zeros_like(tokens)
    valid = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, q in enumerate(questions):
        start, end = longest - len(q.context), longest + len(q.trie.tokens)
        tokens[row, start:end] = torch.tensor(q.context + q.trie.tokens)
        alone = [*range(len(q.context)), *(len(q.context) - 1 + depth for depth in q.trie.depths)]
        positions[row, start:end] = torch.tensor(alone)
        valid[row, start:end] = True
    allowed = causal(valid)
    if widest:
        _restrict_to_ancestors(allowed, [q.trie for q in questions], longest)
    logits = base.logits(tokens, positions, allowed, last=widest + 1)
    return iter(logits.float().log_softmax(-1))


def _restrict_to_ancestors(allowed: Tensor, tries: Sequence[Trie], longest: int) -> None:
    """In place: a trie node at ``longest + i`` sees, among the nodes, itself and its ancestors only."""
    nodes = allowed.shape[1] - longest
    lineages: dict[int, Tensor] = {}
    for row, trie in enumerate(tries):
        if id(trie) not in lineages:  # questions with equal tails share one object
            lineages[id(trie)] = _lineage(trie, nodes)
        allowed[row, longest:, longest:] = lineages[id(trie)]


def _lineage(trie: Trie, nodes: int) -> Tensor:
    """[nodes, nodes] bool: is node j + 1 node i + 1 or an ancestor of it. Padding sees itself."""
    lineage = torch.eye(nodes, dtype=torch.bool)
    for i, parent in enumerate(trie.parents):
        if parent:
            lineage[i] |= lineage[parent - 1]
    return lineage


def choices_of(base: LoadedBase, questions: Sequence[Question]) -> list[int]:
    """The index of the likeliest choice of each question; of equal ones the first in sorted order."""
    if not questions:
        return []
    chosen: list[int] = choice_scores(base, questions).argmax(1).tolist()
    return chosen
