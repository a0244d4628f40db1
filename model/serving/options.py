"""What clients may ask of either endpoint: OpenAI's fields, and beside them vLLM's where OpenAI has none (top_k, grammars, thinking budgets, ...).

What is named here is checked. Fields that would change what is written but that we do not have are refused unless they say what happens anyway (`REFUSED`);
all others (user, metadata, store, service_tier, ...) are of no consequence here and ignored.
"""
from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from model.engine import SamplingParams

INT32, INT64 = (1 << 31) - 1, (1 << 63) - 1
COLDEST = 1e-5  # temperatures below are greedy: logits divided by less overflow float32
MOST_LIKELY = 20  # alternatives a token: OpenAI's limit
BIAS = 100  # largest logit_bias: OpenAI's
REFUSED: dict[str, tuple[Any, ...]] = {  # OpenAI's and vLLM's fields -> values that ask for nothing
    "length_penalty": (1,), "bad_words": ([],), "use_beam_search": (False,), "prompt_logprobs": (), "best_of": (1,), "suffix": ("",), "echo": (False,),
    "functions": ([],), "function_call": ("none",), "modalities": (["text"],), "audio": (), "web_search_options": (), "verbosity": ("medium",),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (), "include_stop_str_in_output": (False,), "truncate_prompt_tokens": (),
    "prompt_embeds": (), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "logprob_token_ids": ([],), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "chat_template": (), "documents": ([],),
}


def encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(encodable)]
StopString = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(encodable)]
TokenId = Annotated[int, Field(ge=0, le=INT32)]


class StreamOptions(BaseModel):
    include_usage: bool = Field(False, description="a last chunk with the whole's")
    continuous_usage_stats: bool = Field(False, description="every chunk with the usage so far")


class NamedSchema(BaseModel):
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None

    def grammar(self) -> dict[str, Any]:
        if self.type == "json_schema":
            return {"json_schema": self.json_schema.schema_ if self.json_schema else {}}
        return {"json_schema": {"type": "object"}} if self.type == "json_object" else {}


class StructuredOutputs(BaseModel):
    """vLLM's, one of the three."""

    model_config = ConfigDict(extra="forbid")
    json_: dict[str, Any] | Text | None = Field(None, alias="json", description="a JSON schema")
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1, description="one of these texts")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(asked is not None for asked in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("asks for exactly one of json, regex and choice")
        return self

    def grammar(self) -> dict[str, Any]:
        if self.json_ is not None:
            return {"json_schema": self.json_}
        return {"regex": self.regex if self.choice is None else "|".join(map(re.escape, self.choice))}


class Options(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    usual_tokens: ClassVar[float] = math.inf  # written at most where the request does not say
    model: str | None = Field(None, description="the served model's name; absent: the one there is")
    n: int | None = Field(None, ge=1, le=128, description="1 if absent")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 if absent")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32)
    min_p: float | None = Field(None, ge=0, le=1, description="tokens less likely than this share of the likeliest are left out")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-BIAS, le=BIAS)]] | None = Field(None, description="of tokens by their ids")
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, description="no other tokens are written")
    max_tokens: int | None = Field(None, ge=1, le=INT32)
    min_tokens: int | None = Field(None, ge=0, le=INT32, description="so many before a token may end it")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1000)
    ignore_eos: bool | None = False
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    stream: bool | None = False
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_budget: int | None = Field(None, ge=0, le=INT32, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget"),
                                        description="thinking tokens after which thinking is closed at the next newline; also thinking_token_budget")

    @model_validator(mode="after")
    def _know_what_is_asked(self) -> Options:
        for field, value in (self.model_extra or {}).items():
            if field in REFUSED and value is not None and value not in REFUSED[field]:
                raise ValueError(f"{field} is not supported")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        if self.response_format and self.response_format.grammar() and self.structured_outputs:
            raise ValueError("give response_format or structured_outputs, not both")
        return self

    @property
    def samples(self) -> int:
        """Of each prompt."""
        return self.n or 1

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
        return next((asked.grammar() for asked in (self.structured_outputs, self.response_format) if asked), {})

    def params(self, tokens: int) -> SamplingParams:
        """For the engine; `tokens` is how many may be written at most. Raises ValueError for what does not go together."""
        temperature = 1.0 if self.temperature is None else self.temperature
        as_named = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids", "min_tokens",
                    "stop", "stop_token_ids", "seed", "thinking_budget")
        return SamplingParams(
            n=self.samples, temperature=temperature if temperature >= COLDEST else 0.0, ignore_eos=bool(self.ignore_eos),
            max_tokens=min(tokens, self.usual_tokens) if self.max_tokens is None else max(1, self.max_tokens),
            logprobs=self.most_likely is not None, top_logprobs=self.most_likely or 0, prompt_logprobs=self.most_likely if self.scores_prompt else None,
            **{name: value for name in as_named if (value := getattr(self, name)) is not None}, **self.grammar())
