"""The old pair as a teacher: it answers prompts, and its answers become completions to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Pair
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.forms import Form, GreedyText
from readapt_runtime.adapt.tokens import encode


@dataclass(frozen=True, slots=True)
class Teacher:
    """An old pair and how it is asked."""

    pair: Pair
    form: Form
    cache: Callable[[str], AnswerCache]
    """Where answers to a named part of the data are kept."""

    def teach(self, part: str, prompts: Sequence[str]) -> tuple[Example, ...]:
        """The prompts with the answers, less those without an answer and those whose answer has no end in sight."""
        asked = [Example(prompt, "") for prompt in prompts]
        answers = AnswerStream(self.pair, asked, self.form, self.cache(part)).all()
        taught = [Example(e.prompt, str(a)) for e, a in zip(asked, answers, strict=True) if str(a).strip()]
        if not isinstance(self.form, GreedyText):
            return tuple(taught)
        rows = encode(self.pair.base, taught)
        return tuple(e for e, row in zip(taught, rows, strict=True) if len(row.ids) - row.context <= self.form.limit)
