"""Rollouts: the policy answers, environments judge. The engine runs in this process on the trainer's own weights.

No weights are copied and none are stale; what still differs between sampler and trainer (cached one-token steps against one long
forward, in low precision) is measured each step and corrected in the loss. A step's rollouts are a stateless function of
(seed, step) and the weights: problems and sampling streams are keyed, never drawn in sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.engine import Engine, SamplingParams
from training.environments.environment import Environment, Outcome

__all__ = ["Rollouts", "Sample", "collect", "tensors", "RolloutTensors"]


COLUMNS = 16  # lengths are rounded up to this: few shapes, little padding


@dataclass(frozen=True)
class Sample:
    """One response to one prompt, judged."""

    prompt_ids: list[int]
    response_ids: list[int]
    engine_logprobs: list[float]  # of the response tokens, temperature 1
    forced: frozenset[int]  # response positions a thinking budget wrote; no gradient there
    text: str
    truncated: bool
    outcome: Outcome


@dataclass(frozen=True)
class Rollouts:
    """P groups of G samples, and the environment each group came from."""

    groups: list[list[Sample]]
    environments: list[str]

    @property
    def rewards_PG(self) -> Tensor:
        return torch.tensor([[s.outcome.reward for s in group] for group in self.groups], dtype=torch.float64)


def stream_seed(*key: int | str) -> int:
    """A 63-bit sampling seed from a key: the same key, the same stream, whatever ran before."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def collect(
    engine: Engine, encode_prompt: Any, environments: Sequence[Environment], *, prompts: int, group: int, seed: int, step: int, max_tokens: int,
) -> Rollouts:
    """Play `prompts` single-policy-turn episodes `group` times each. Environments take turns, so each step sees all of them.

    encode_prompt  messages -> token ids up to where the assistant starts to write
    """
    chosen = [environments[(step * prompts + p) % len(environments)] for p in range(prompts)]
    starts = [environment.reset(seed, step * prompts + p) for p, environment in enumerate(chosen)]
    prompt_ids = [encode_prompt(messages) for _, messages in starts]
    params = [
        SamplingParams(n=group, temperature=1.0, max_tokens=max_tokens, seed=stream_seed(seed, step, p), logprobs=True) for p in range(prompts)
    ]
    groups: list[list[Sample]] = []
    for environment, (state, _), ids, request in zip(chosen, starts, prompt_ids, engine.generate(prompt_ids, params), strict=True):
        samples = []
        for output in request.outputs:
            truncated = output.finish_reason == "length"
            after, more = environment.step(state, output.text, truncated=truncated)
            assert more is None, f"{environment.name}: rollouts are single-turn, the environment asked for another"
            samples.append(
                Sample(
                    ids, list(output.token_ids), list(output.logprobs), frozenset(output.forced_positions), output.text, truncated,
                    environment.verdict(after),
                )
            )
        groups.append(samples)
    return Rollouts(groups, [environment.name for environment in chosen])


def length(sample: Sample) -> int:
    """Positions a sample takes as a row of inputs and labels."""
    return len(sample.prompt_ids) + len(sample.response_ids) - 1


@dataclass(frozen=True)
class RolloutTensors:
    """N samples right-padded to T positions; labels_NT[t] is the token after input_ids_NT[t], the mask marks response labels."""

    input_ids_NT: Tensor
    labels_NT: Tensor
    mask_NT: Tensor
    engine_logprobs_NT: Tensor

    def rows(self, index: slice) -> RolloutTensors:
        """Some of the rows, without the columns behind the last label of any of them."""
        last = int(self.mask_NT[index].any(0).nonzero().max()) + 1
        index = (index, slice(0, -(-last // COLUMNS) * COLUMNS))
        return RolloutTensors(self.input_ids_NT[index], self.labels_NT[index], self.mask_NT[index], self.engine_logprobs_NT[index])


def tensors(samples: Sequence[Sample]) -> RolloutTensors:
    """Pad samples to a common length."""
    longest = max(map(length, samples))
    N, T = len(samples), -(-longest // COLUMNS) * COLUMNS
    input_ids, labels = np.zeros((N, T), np.int64), np.zeros((N, T), np.int64)
    mask, logprobs = np.zeros((N, T), np.float32), np.zeros((N, T), np.float32)
    for n, sample in enumerate(samples):
        tokens = sample.prompt_ids + sample.response_ids
        first, end = len(sample.prompt_ids) - 1, len(tokens) - 1
        input_ids[n, :end], labels[n, :end] = tokens[:-1], tokens[1:]
        mask[n, first:end] = [position not in sample.forced for position in range(len(sample.response_ids))]
        logprobs[n, first:end] = sample.engine_logprobs
    return RolloutTensors(*(torch.from_numpy(a) for a in (input_ids, labels, mask, logprobs)))
