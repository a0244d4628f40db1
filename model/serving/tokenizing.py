"""vLLM's routes around the tokenizer: text to tokens and back without a copy of it at hand. lm-evaluation-harness finds and uses them by itself.

    POST /tokenize {"prompt": ...} or {"messages": [...], "tools": [...]}        POST /detokenize {"tokens": [...]}        GET /tokenizer_info
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from model import chat
from model.engine import Engine
from model.serving.guard import refusal
from model.serving.loop import EngineLoop
from model.serving.options import Text, TokenId
from model.serving.requests import Message, TemplateArguments, Tool, chat_tokens


class TokenizeRequest(BaseModel):
    model: str | None = None
    prompt: Text | None = Field(None, description="a text, which may spell special tokens, as that of /v1/completions")
    messages: list[Message] | None = Field(None, min_length=1, description="a conversation, as that of /v1/chat/completions")
    tools: list[Tool] | None = Field(None, max_length=128)
    chat_template_kwargs: TemplateArguments | None = None
    add_generation_prompt: bool | None = Field(True, description="end with the beginning of an assistant's turn")
    return_token_strs: bool | None = Field(False, description="with the text of each token")

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages")
        return self

    def tokens(self, engine: Engine) -> list[int]:
        if self.prompt is not None:
            return engine.encode(self.prompt)
        own = self.chat_template_kwargs or TemplateArguments()
        return chat_tokens(engine.tokenizer, self.messages, [tool.function.plain() for tool in self.tools or ()], own,
                           thinking=own.enable_thinking is not False, add_generation_prompt=self.add_generation_prompt is not False)


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: list[TokenId]


def add_tokenizer_routes(app: FastAPI, engine: Engine, running: EngineLoop, unknown: Callable[[str | None], Response | None], refusals: dict[int, Any]) -> None:
    """`unknown` refuses models there are not; the tokenizer is used on the engine's thread, between two steps."""

    @app.post("/tokenize", response_model=None, responses=refusals)
    async def tokenize(body: TokenizeRequest) -> dict[str, Any] | Response:
        if missing := unknown(body.model):
            return missing
        try:
            tokens = await running.call(lambda: body.tokens(engine))
        except ValueError as error:
            return refusal(str(error))
        answer: dict[str, Any] = {"count": len(tokens), "max_model_len": engine.max_length, "tokens": tokens}
        if body.return_token_strs:
            answer["token_strs"] = await running.call(lambda: engine.tokenizer.decode_batch([[token] for token in tokens], skip_special_tokens=False))
        return answer

    @app.post("/detokenize", response_model=None, responses=refusals)
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any] | Response:
        if missing := unknown(body.model):
            return missing
        return {"prompt": await running.call(lambda: engine.tokenizer.decode(body.tokens, skip_special_tokens=False))}

    @app.get("/tokenizer_info", responses={status: refusals[status] for status in (401,)})
    async def tokenizer_info() -> dict[str, str | None]:
        """As the model's tokenizer_config.json would say it."""
        there = await running.call(lambda: {token for token in (chat.BOS, chat.EOS, chat.IM_END) if engine.tokenizer.token_to_id(token) is not None})
        named = {name: token if token in there else None for name, token in (("bos_token", chat.BOS), ("eos_token", chat.EOS), ("pad_token", chat.EOS))}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat.CHAT_TEMPLATE, **named}
