"""The hybrid Mamba-2 / attention / MoE language model; names load on first use so that `import model` stays cheap."""

__all__ = ["Cache", "HybridConfig", "HybridLM"]

_HOMES = {"HybridLM": "model.lm", "HybridConfig": "model.config", "Cache": "model.cache"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
