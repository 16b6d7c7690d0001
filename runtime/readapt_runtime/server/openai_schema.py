"""What clients may ask: the implemented part of the OpenAI API.

A parameter that is not implemented is refused, never ignored; its neutral value is accepted, because that is what is
computed anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

_SEED = 2**63


def _neutral(*values: object) -> BeforeValidator:
    def check(value: object) -> object:
        if value is not None and not any(_is_like(value, v) and value == v for v in values):
            known = f"only {values[0]!r}, which changes nothing, is implemented" if values else "not implemented"
            raise ValueError(known)
        return value

    return BeforeValidator(check)


def _is_like(value: object, wanted: object) -> bool:
    """Of one type; a whole number may be written with or without a point."""
    numbers = (int, float)
    return type(value) is type(wanted) or (type(value) in numbers and type(wanted) in numbers)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _not_empty(values: list[str]) -> list[str]:
    if any(not v for v in values):
        raise ValueError("must not be empty")
    return values


def _prompt(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """One message in place of one for each form."""
    try:
        prompt: object = handler(value)
    except ValidationError:
        raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids") from None
    if prompt == []:
        raise ValueError("must not be an empty list")
    return prompt


class _FailFast(FailFast):
    """The first wrong element decides; hashable, for unions."""

    __hash__ = object.__hash__


_FIRST_THAT_FITS = Field(union_mode="left_to_right")
Texts = Annotated[list[str], _FailFast()]
Ids = Annotated[list[StrictInt], _FailFast()]
Zero = Annotated[Any, _neutral(0, 0.0)]
Off = Annotated[Any, _neutral(False)]
Stops = Annotated[Texts, BeforeValidator(_as_list), AfterValidator(_not_empty)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class _Shared(BaseModel):
    """What completions and chat share. Defaults are OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    model: str = Field(max_length=256)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-_SEED, lt=_SEED)
    stop: Stops | None = None
    max_tokens: int | None = Field(None, ge=1)
    ignore_eos: bool | None = None
    """Answers to the full length; not OpenAI's, but what benchmark clients send to other servers."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256)
    """Identifies the end user; it has no effect on the answer in the OpenAI API either."""
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Annotated[Any, _neutral({})] = None

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("is only allowed when 'stream' is enabled")
        return value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Shared):
    asks: ClassVar = "prompt"
    """The parameter that is answered."""
    prompt: Annotated[str | Texts | Ids | Annotated[list[Ids], _FailFast()], _FIRST_THAT_FITS, WrapValidator(_prompt)]
    best_of: Annotated[Any, _neutral(1)] = None
    echo: Off = None
    logprobs: int | None = Field(None, ge=0, le=5)
    """How many of the likeliest tokens are reported with each token; the chosen one always is."""
    suffix: Annotated[Any, _neutral("")] = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """As a list of prompts, each text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens or 16

    @property
    def top_log_probs(self) -> int | None:
        """As in ``SamplingParams``."""
        return self.logprobs


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "user", "assistant", "developer"]
    content: Annotated[str | Annotated[list[TextPart], _FailFast()], _FIRST_THAT_FITS]
    name: Annotated[Any, _neutral()] = None

    def flat(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class ChatRequest(_Shared):
    asks: ClassVar = "messages"
    """The parameter that is answered."""
    messages: Annotated[list[Message], _FailFast()] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @property
    def answer_tokens(self) -> int | None:
        """None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top_log_probs(self) -> int | None:
        """As in ``SamplingParams``."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return value


AnswerRequest = CompletionRequest | ChatRequest
