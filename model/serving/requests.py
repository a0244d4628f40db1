"""What clients may ask for: OpenAI's fields, and beside them vLLM's where OpenAI has none (top_k, thinking budgets, template arguments).

What is named here is checked. Fields that would change what is written but that we do not have are refused unless they say what happens anyway (`REFUSED`);
all others (user, metadata, store, service_tier, ...) are of no consequence here and ignored.
"""
from __future__ import annotations

import json
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from model import tools
from model.engine import SamplingParams

_INT32, _INT64 = (1 << 31) - 1, (1 << 63) - 1
COLDEST = 1e-5  # temperatures below are greedy: logits divided by less overflow float32
MOST_LIKELY = 20  # alternatives a token: OpenAI's limit
REFUSED: dict[str, tuple[Any, ...]] = {  # OpenAI's and vLLM's fields -> values that ask for nothing
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,), "min_p": (0,), "min_tokens": (0,),
    "logit_bias": ({},), "bad_words": ([],), "allowed_token_ids": ([],), "use_beam_search": (False,), "prompt_logprobs": (), "best_of": (1,), "suffix": ("",),
    "functions": ([],), "function_call": ("none",), "modalities": (["text"],), "audio": (), "web_search_options": (), "verbosity": ("medium",),
    "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
}


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Options(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    usual_tokens: ClassVar[float] = math.inf  # written at most where the request does not say
    model: str | None = Field(None, description="the served model's name; absent: the one there is")
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 if absent")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32)
    max_tokens: int | None = Field(None, ge=1, le=_INT32)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-_INT64 - 1, le=_INT64)
    stream: bool | None = False
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    ignore_eos: bool = False
    thinking_budget: int | None = Field(None, ge=0, le=_INT32, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget"),
                                        description="thinking tokens after which thinking is closed at the next newline; also thinking_token_budget")

    @model_validator(mode="after")
    def _know_what_is_asked(self) -> Options:
        for field, value in (self.model_extra or {}).items():
            if field in REFUSED and value is not None and value not in REFUSED[field]:
                raise ValueError(f"{field} is not supported")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self

    @property
    def most_likely(self) -> int | None:
        """How many alternatives each token is shown with; None for no log-probabilities at all."""
        raise AssertionError("either endpoint has its own")

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities are shown of the prompt too."""
        return False

    def grammar(self) -> dict[str, Any]:
        """The `json_schema` or `regex` every sample must match, if any."""
        return {}

    def params(self, tokens: int) -> SamplingParams:
        """For the engine; `tokens` is how many may be written at most."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(
            n=self.n, temperature=temperature if temperature >= COLDEST else 0.0, top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0, max_tokens=min(tokens, self.usual_tokens) if self.max_tokens is None else max(1, self.max_tokens),
            stop=self.stop or (), seed=self.seed, ignore_eos=self.ignore_eos, thinking_budget=self.thinking_budget,
            logprobs=self.most_likely is not None, top_logprobs=self.most_likely or 0,
            prompt_logprobs=self.most_likely if self.scores_prompt else None, **self.grammar())


# ---- /v1/completions


class CompletionRequest(Options):
    usual_tokens: ClassVar[float] = 16
    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]] = Field(description="a text, token ids, or a list of either")
    max_tokens: int | None = Field(None, ge=0, le=_INT32, description="16 if absent, as OpenAI has it; 0: nothing but what echo shows")
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="of the tokens shown, and of so many most likely ones in their places")
    echo: bool | None = Field(False, description="begin with the prompt, and with its tokens' logprobs if those are asked for")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]

    @property
    def most_likely(self) -> int | None:
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo)


# ---- /v1/chat/completions


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class Called(BaseModel):
    name: Name
    arguments: Text = Field("", description="a JSON object")


class Call(BaseModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called

    @model_validator(mode="after")
    def _can_be_shown(self) -> Call:
        try:
            tools.written(self.plain()).encode()
        except (ValueError, RecursionError):
            raise ValueError("arguments must be a JSON object") from None
        return self

    def plain(self) -> dict[str, Any]:
        return {"name": self.function.name, "arguments": json.loads(self.function.arguments or "{}")}


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    reasoning_content: Text | None = None
    tool_calls: list[Call] | None = Field(None, description="an assistant's")
    tool_call_id: str | None = Field(None, description="of a tool's result; results are read in the order of the calls")

    def plain(self) -> dict[str, Any]:
        """The message as the chat template takes it: one text, arguments as objects, and OpenAI's newer name for the system's role put back."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.role == "assistant":
            message |= {"reasoning_content": self.reasoning_content} if self.reasoning_content else {}
            message |= {"tool_calls": [call.plain() for call in self.tool_calls]} if self.tool_calls else {}
        return message


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")

    @model_validator(mode="after")
    def _can_be_shown(self) -> Function:
        try:
            _encodable(tools.declare([self.plain()]))
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        return self

    def plain(self) -> dict[str, Any]:
        return {key: value for key, value in self.model_dump(exclude_unset=True).items() if value is not None}


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class Chosen(BaseModel):
    name: str


class ToolChoice(BaseModel):
    type: Literal["function"]
    function: Chosen


class TemplateArguments(BaseModel):
    enable_thinking: bool | None = Field(None, description="true if absent, unless a grammar (response_format, a forced call) leaves no room to think")


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
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="only with logprobs")
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = Field(None, description="required, or a name: the answer is exactly one call")
    parallel_tool_calls: bool | None = Field(None, description="false: what follows a first call is dropped")
    reasoning_effort: Literal["none", "medium"] | None = Field(None, description="none: thinking off; for less of it there is thinking_budget")
    chat_template_kwargs: TemplateArguments = TemplateArguments()

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinking(self) -> bool:
        asked = self.chat_template_kwargs.enable_thinking
        return self.reasoning_effort != "none" and not self.grammar() if asked is None else asked

    @property
    def tools_shown(self) -> list[dict[str, Any]]:
        """The tools the model is told of."""
        return [] if self.tool_choice == "none" else [tool.function.plain() for tool in self.tools or ()]

    def grammar(self) -> dict[str, Any]:
        schema = self.response_format.schema_asked() if self.response_format else None
        if self.forced:
            return {"regex": tools.call_pattern(self.forced)}
        return {} if schema is None else {"json_schema": schema}

    @property
    def forced(self) -> list[dict[str, Any]]:
        """The tools one of which must be called now."""
        if isinstance(self.tool_choice, ToolChoice):
            return [tool for tool in self.tools_shown if tool["name"] == self.tool_choice.function.name]
        return self.tools_shown if self.tool_choice == "required" else []

    @model_validator(mode="after")
    def _settle(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is only for logprobs: true")
        if self.tool_choice not in (None, "none", "auto") and not self.forced:
            raise ValueError("tool_choice asks for a call of a tool that is not in tools")
        if self.forced and self.response_format and self.response_format.schema_asked() is not None:
            raise ValueError("response_format and a forced tool_choice do not go together")
        if self.grammar() and self.thinking:
            raise ValueError("response_format or a forced tool_choice do not go together with enable_thinking: a grammar leaves no room to think")
        return self
