"""Text generation with a HybridLM: `Engine(lm, tokenizer).generate(prompts, SamplingParams(...))`, or `stream`, or `submit` and `step`."""
from model.engine.engine import Engine
from model.engine.params import CompletionOutput, RequestOutput, SamplingParams
from model.engine.stream import Delta, Request

__all__ = ["CompletionOutput", "Delta", "Engine", "Request", "RequestOutput", "SamplingParams"]
