"""Who writes: the in-repo engine or any OpenAI-compatible endpoint (vLLM's server among them), behind one call."""
