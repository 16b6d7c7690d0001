"""What a task is learned on: choosing among its own answers, and judging earlier answers as before.

    L = -log p(right | the task's answers, x) + κ · KL( p_before(· | earlier answers, x) ‖ p(· | earlier answers, x) )

over the present task's prompts x; p is the softmax over the length-normalised log-likelihoods that Accuracy compares.
The likelihood of the right answer against all that a language model could say would teach, above all, to say the newest
task's answers whatever is asked. The first term is the counterpart of the paper's, which masks the classes of other
tasks. The second goes beyond it (learning without forgetting, arXiv 1606.09282): no example of an earlier task is seen
again, but what the model thought of earlier answers on today's prompts must stay. `docs/adaptation.md` has what each
is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.scoring import choice_scores, prepare, scores
from readapt_runtime.adapt.tokens import answer_losses, encode
from readapt_runtime.examples import BadData

KEEPING = 1.0
"""κ."""
_PASS_QUESTIONS = 256
"""Questions of one call; their batches are cut by length."""
_STATE = "judged"


class AnswerLoss:
    """Mean nats per token of the right answer, as in the tuning of one task."""

    def __init__(self, base: LoadedBase, examples: Sequence[Example]) -> None:
        self._base = base
        self._rows = encode(base, examples)
        self.lengths = [len(row.ids) for row in self._rows]

    def __call__(self, batch: Sequence[int]) -> Tensor:
        return answer_losses(self._base, [self._rows[i] for i in batch]).mean()


class ChoiceLoss:
    """See the module; without ``earlier`` answers, or with ``keeping`` 0, the first term alone."""

    def __init__(
        self,
        base: LoadedBase,
        examples: Sequence[Example],
        own: Sequence[str],
        earlier: Sequence[str] = (),
        keeping: float = KEEPING,
        journal: Journal | None = None,
    ) -> None:
        """To be made while the base has what was learned before attached: its answers are asked for here.

        With ``journal`` those that an earlier run asked for are not asked for again. Raises BadData when ``own``
        leaves no choice.
        """
        if len(own) < 2:
            raise BadData(f"the examples have {len(own)} distinct completions: there is nothing to choose between")
        others = [choice for choice in earlier if choice not in own] if keeping else []
        index = {choice: i for i, choice in enumerate(own)}
        self._base = base
        self._own = len(own)
        self._keeping = keeping
        self._questions = prepare(base, [e.prompt for e in examples], [*own, *others])
        self._right = torch.tensor([index[e.completion] for e in examples], device=base.device)
        self._before = self._judge_all(journal).to(base.device) if others else None
        self.lengths = [len(q.context) for q in self._questions]

    def __call__(self, batch: Sequence[int]) -> Tensor:
        rows = list(batch)
        found = scores(self._base, [self._questions[i] for i in rows])
        loss = F.cross_entropy(found[:, : self._own].float(), self._right[rows])
        if self._before is None:
            return loss
        kept = F.kl_div(self._judge(found), self._before[rows], log_target=True, reduction="batchmean")
        return loss + self._keeping * kept

    def _judge_all(self, journal: Journal | None) -> Tensor:
        """[questions, earlier] as ``_judge``, for what is attached to the base now."""
        found = None if journal is None else journal.load(_STATE, lambda _, tensors: tensors["judged"].clone())
        parts = [] if found is None else [found]
        while (begin := sum(map(len, parts))) < len(self._questions):
            questions = self._questions[begin : begin + _PASS_QUESTIONS]
            parts.append(self._judge(choice_scores(self._base, questions)))
            if journal is not None and (journal.due() or begin + len(questions) == len(self._questions)):
                journal.save(_STATE, None, {"judged": torch.cat(parts)})
        return torch.cat(parts)

    def _judge(self, found: Tensor) -> Tensor:
        """[questions, choices] scores -> [questions, earlier] log-probabilities among the earlier answers, fp32."""
        return found[:, self._own :].float().log_softmax(1).clone()
