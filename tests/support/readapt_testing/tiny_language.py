"""A made-up language whose words belong to topics, and a question about it that takes knowing the topics.

Sentences stay with one topic, so a language model that is trained on them learns which words belong together. The
question "which topic is most of this about" is answered with label words that the language uses among themselves only:
a base model cannot answer it, an adapter over a base that knows the topics learns it from a few hundred examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TOPICS = 8
WORDS_PER_TOPIC = 20
GLUE = tuple(f"g{i}" for i in range(16))
LABELS = tuple(f"label{i}" for i in range(TOPICS))
ROLES = ("system", "user", "assistant")
END = "</s>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
_SENTENCE = 10


def word(topic: int, index: int) -> str:
    return f"t{topic}w{index}"


def words_of(topic: int) -> tuple[str, ...]:
    """The words of a topic; the one after the last topic holds the labels."""
    if topic == TOPICS:
        return LABELS
    return tuple(word(topic, i) for i in range(WORDS_PER_TOPIC))


def vocabulary() -> list[str]:
    """Every word once; the id is the position."""
    words = [word(t, i) for t in range(TOPICS) for i in range(WORDS_PER_TOPIC)]
    return [END, "<unk>", *words, *GLUE, *LABELS, *ROLES]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, separated by white space; nothing is added at either end."""
    words = {text: i for i, text in enumerate(vocabulary())}
    raw = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, unk_token="<unk>")  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT_TEMPLATE
    return fast


@dataclass(frozen=True, slots=True)
class Dialect:
    """How sentences are made; two dialects of one language differ in word order and glue, not in topics."""

    stride: int
    """A topic's word ``i`` is mostly followed by its word ``i + stride``."""
    glue: tuple[str, ...]
    shuffled: float
    """Share of steps that go to any word of the topic instead."""

    def sentence(self, draw: random.Random) -> list[str]:
        topic = draw.randrange(TOPICS + 1)
        words = words_of(topic)
        index, out = draw.randrange(len(words)), []
        for _ in range(_SENTENCE):
            if draw.random() < 0.2:
                out.append(self.glue[(index + topic) % len(self.glue)])
                continue
            out.append(words[index])
            index = (index + self.stride) % len(words)
            if draw.random() < self.shuffled:
                index = draw.randrange(len(words))
        return out

    def text(self, draw: random.Random, tokens: int) -> list[str]:
        """A window of ``tokens`` words into sentences that each follow END; it may begin within one."""
        skipped = draw.randrange(_SENTENCE + 1)
        out: list[str] = []
        while len(out) < skipped + tokens:
            out += [END, *self.sentence(draw)]
        return out[skipped : skipped + tokens]


@dataclass(frozen=True, slots=True)
class Question:
    """Words of several topics and a label; ``shift`` turns one question into another with other labels."""

    shift: int = 0
    length: int = 9
    majority: int = 4

    def examples(self, count: int, seed: int) -> Iterator[dict[str, str]]:
        """Distinct prompts with the label of the topic that has the most words in it."""
        draw = random.Random(seed)
        seen: set[str] = set()
        while len(seen) < count:
            topic = draw.randrange(TOPICS)
            others = [t for t in range(TOPICS) if t != topic]
            topics = [topic] * self.majority + draw.sample(others, self.length - self.majority)
            draw.shuffle(topics)
            prompt = " ".join(word(t, draw.randrange(WORDS_PER_TOPIC)) for t in topics)
            if prompt not in seen:
                seen.add(prompt)
                yield {"prompt": prompt, "completion": f" {LABELS[(topic + self.shift) % TOPICS]}"}
