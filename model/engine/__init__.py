"""Text generation with a HybridLM: `Engine(lm, tokenizer).generate(prompts, SamplingParams(...))`."""
from model.engine.engine import Engine
from model.engine.params import CompletionOutput, RequestOutput, SamplingParams

__all__ = ["CompletionOutput", "Engine", "RequestOutput", "SamplingParams"]
