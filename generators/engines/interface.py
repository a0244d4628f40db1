"""One interface to whatever writes text: conversations in, samples out.

    writer = open_writer(EngineRecipe(kind="local", model="runs/sft/model"))
    writer.generate([[{"role": "user", "content": "What is 2 + 2?"}]], [Request(seed=1, n=4)])  ->  [[Sample, ...]]
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, field_serializer, model_validator

from pipelines.recipe import Recipe

Conversation = Sequence[Mapping[str, str]]
NO_THINKING = "<think></think>"  # how a response begins whose prompt closed thinking: it belongs to the response


class SamplingRecipe(Recipe):
    """How samples are drawn; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(gt=0)] = 256
    thinking: bool = True
    thinking_budget: Annotated[int, Field(ge=0)] | None = None


class EngineRecipe(Recipe):
    """Which writer. `local` loads a model folder into this process; `openai` talks to a server."""

    kind: Literal["local", "openai"] = "local"
    model: str
    """A model folder, or the name the server knows the model by."""
    name: str | None = None
    """What documents call the model; by default the folder's or the model's name."""
    revision: str | None = None
    """As recorded with every document. Of a served model: whatever its owner calls it. Of a folder: `weights_digest` of it, by default
    and, where given, checked, so that a run resumed after the weights changed fails instead of mixing two models."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    slots: Annotated[int, Field(gt=0)] = 64
    max_length: Annotated[int, Field(gt=1)] = 1024
    url: str | None = None
    """Of the server, up to and including /v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, where the server wants one."""
    concurrency: Annotated[int, Field(gt=0)] = 16
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds a request may take."""

    @model_validator(mode="after")
    def _has_url(self) -> EngineRecipe:
        if (self.kind == "openai") != (self.url is not None):
            raise ValueError("`url` goes with kind: openai, and only with it")
        return self

    @field_serializer("model")
    def _without_path(self, model: str) -> str:
        """Where a folder lies is no part of a run's identity; its name and revision are."""
        return Path(model).name if self.kind == "local" else model


@dataclass(frozen=True, kw_only=True)
class Request:
    """n samples drawn from the random stream `seed`."""

    seed: int
    n: int = 1


@dataclass(frozen=True)
class Sample:
    """What was written after the prompt, thinking included (`<think>` itself may stand in the prompt). finish_reason: stop, length, ..."""

    text: str
    finish_reason: str
    tokens: int


class Writer(Protocol):
    """Anything that continues conversations."""

    name: str  # model@revision, as recorded with every document

    def generate(self, conversations: Sequence[Conversation], requests: Sequence[Request], sampling: SamplingRecipe) -> list[list[Sample]]:
        """n samples for every conversation, in order."""
        ...
