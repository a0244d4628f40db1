"""What clients may ask for: OpenAI's fields, and beside them vLLM's where OpenAI has none (top_k, thinking budgets, template arguments).

Fields that are not named here are ignored, as clients send many that mean nothing to an engine of our own; what is named is checked.
"""
from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from model.engine import SamplingParams

_INT32, _INT64 = (1 << 31) - 1, (1 << 63) - 1
COLDEST = 1e-5  # temperatures below are greedy: logits divided by less overflow float32



def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_encodable)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Options(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    model: str | None = Field(None, description="the served model's name; absent: the one there is")
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 if absent")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32)
    max_tokens: int | None = Field(None, ge=1, le=_INT32)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-_INT64 - 1, le=_INT64)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    thinking_budget: int | None = Field(None, ge=0, le=_INT32, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget"),
                                        description="thinking tokens after which thinking is closed at the next newline; also thinking_token_budget")

    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema every sample must match."""
        return None

    def params(self, tokens: int, *, logprobs: bool) -> SamplingParams:
        """For the engine; `tokens` is how many may be written where the request does not say."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(
            n=self.n, temperature=temperature if temperature >= COLDEST else 0.0, top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0, max_tokens=tokens if self.max_tokens is None else self.max_tokens, stop=self.stop or (), seed=self.seed,
            ignore_eos=self.ignore_eos, logprobs=logprobs, thinking_budget=self.thinking_budget, json_schema=self.schema_asked())


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    reasoning_content: Text | None = None

    def plain(self) -> dict[str, str]:
        """The message as the chat template takes it: one text, and OpenAI's newer name for the system's role put back."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return message | ({"reasoning_content": self.reasoning_content} if self.reasoning_content else {})


class TemplateArguments(BaseModel):
    enable_thinking: bool | None = Field(None, description="true if absent, unless response_format asks for JSON: a grammar leaves no room to think")


class NamedSchema(BaseModel):
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None

    def schema_asked(self) -> dict[str, Any] | None:
        if self.type == "json_schema":
            return self.json_schema.schema_ if self.json_schema else {}
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Options):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=_INT32, description="OpenAI's newer name for max_tokens")
    logprobs: bool | None = False
    top_logprobs: Literal[0] | None = Field(None, description="only the chosen token's probability is known")
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateArguments = TemplateArguments()

    @property
    def thinking(self) -> bool:
        asked = self.chat_template_kwargs.enable_thinking
        return self.schema_asked() is None if asked is None else asked

    def schema_asked(self) -> dict[str, Any] | None:
        return self.response_format.schema_asked() if self.response_format else None

    @model_validator(mode="after")
    def _settle(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.schema_asked() is not None and self.thinking:
            raise ValueError("response_format and enable_thinking do not go together: a grammar leaves no room to think")
        return self


class CompletionRequest(Options):
    prompt: Text | list[int]
    logprobs: Literal[0, 1] | None = Field(None, description="0 or 1: the chosen token's probability")
    echo: Literal[False] = False
