"""An OpenAI-compatible server over the engine: `create_app(Engine(lm, tokenizer), "name")`."""
from model.serving.app import create_app
from model.serving.guard import Limits

__all__ = ["Limits", "create_app"]
