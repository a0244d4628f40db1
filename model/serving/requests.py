"""The bodies of the two endpoints, and the prompts they stand for."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from model import chat, tools
from model.serving.options import INT32, MOST_LIKELY, Options, Text, TokenId, encodable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


# ---- /v1/completions


class CompletionRequest(Options):
    usual_tokens: ClassVar[float] = 16  # OpenAI's
    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]] = Field(description="a text, token ids, or a list of either")
    max_tokens: int | None = Field(None, ge=0, le=INT32, description="16 if absent; 0: nothing but what echo shows")
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="of the tokens shown, and of so many most likely ones in their places")
    echo: bool | None = Field(False, description="begin with the prompt, and with its tokens' logprobs if those are asked for")
    best_of: int | None = Field(None, ge=1, le=128, description="what n says: none are drawn in vain")

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

    @model_validator(mode="after")
    def _settle(self) -> CompletionRequest:
        if self.best_of not in (None, self.samples):
            raise ValueError("best_of is only supported where it is n")
        return self


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
    reasoning_content: Text | None = Field(None, validation_alias=AliasChoices("reasoning_content", "reasoning"), description="an assistant's; also reasoning")
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
            encodable(tools.declare([self.plain()]))
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
    """The variables of the chat template; it ignores others."""

    enable_thinking: bool | None = Field(None, description="true if absent, unless a grammar (response_format, a forced call) leaves no room to think")
    truncate_history_thinking: bool | None = Field(None, description="false: the thinking of earlier turns is shown")
    reasoning_budget: Annotated[int, Field(ge=0, le=INT32)] | None = Field(None, description="told to the model; thinking_budget enforces one")


def chat_tokens(tokenizer: Tokenizer, messages: list[Message], known: list[dict[str, Any]], arguments: TemplateArguments | None, *, thinking: bool,
                add_generation_prompt: bool = True) -> list[int]:
    """A conversation as the template has it. On the engine's thread."""
    own = arguments or TemplateArguments()
    return chat.encode(tokenizer, [message.plain() for message in messages], tools=known, add_generation_prompt=add_generation_prompt, enable_thinking=thinking,
                       reasoning_budget=own.reasoning_budget, truncate_history_thinking=own.truncate_history_thinking is not False)[0]


class ChatRequest(Options):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32, description="OpenAI's newer name for max_tokens")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY, description="only with logprobs")
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = Field(None, description="required, or a name: the answer is exactly one call")
    parallel_tool_calls: bool | None = Field(None, description="false: what follows a first call is dropped")
    reasoning_effort: Literal["none", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="none: thinking off; otherwise the model thinks as long as it likes, and for less there is thinking_budget")
    chat_template_kwargs: TemplateArguments | None = None

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinking(self) -> bool:
        asked = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        return self.reasoning_effort != "none" and not self.grammar() if asked is None else asked

    @property
    def tools_shown(self) -> list[dict[str, Any]]:
        """The tools the model is told of."""
        return [] if self.tool_choice == "none" else [tool.function.plain() for tool in self.tools or ()]

    def grammar(self) -> dict[str, Any]:
        return {"regex": tools.call_pattern(self.forced)} if self.forced else super().grammar()

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
        if self.forced and super().grammar():
            raise ValueError("response_format and a forced tool_choice do not go together")
        if self.grammar() and self.thinking:
            raise ValueError("response_format or a forced tool_choice do not go together with enable_thinking: a grammar leaves no room to think")
        return self
