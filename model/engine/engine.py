"""The in-repo generation engine: prompts in, samples out, the same ones every time.

    Engine(lm, tokenizer).generate(["..."], SamplingParams(n=4, temperature=1.0, seed=7))
    for delta in engine.stream("..."): print(delta.text)                 # as it is written; leaving the loop cancels
    request = engine.submit("..."); engine.step(); engine.cancel(request)  # what a server does, between two steps

A sample depends on (weights, prompt, params, seed, k) only: alone as in any batch, whatever is read or written beside it, it is the same bit for bit,
log-probabilities included, where the compiled step runs (`model.packed`: on a CPU).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import closing
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model import chat
from model.cache import Cache
from model.engine.adjust import Adjustment
from model.engine.budget import ThinkingBudget
from model.engine.params import CompletionOutput, RequestOutput, SamplingParams
from model.engine.prefix import PrefixStore
from model.engine.scheduler import PREFILL_TOKENS, Scheduler
from model.engine.scoring import PromptScores
from model.engine.slots import Sequence
from model.engine.speculate import Drafter
from model.engine.stream import Delta, Request, TextReader
from model.linear import stamp

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.engine.grammar import Grammars
    from model.lm import HybridLM

ROUNDS = 16  # tokens a sequence may write before anyone looks: few enough for Ctrl-C


class Engine:
    """Generates with a HybridLM in the dtype of its parameters.

    max_slots: sequences that run at once. max_length: tokens of prompt and sample together. seed: where requests without a seed of
    their own draw from, in order of arrival. The cache is allocated at first use and kept; weights may change between calls.

    guesses: tokens guessed ahead by the model's MTP block, 0 for none; used only while it pays, unless `always_guess`. prefix_bytes: what may be
    spent on remembering beginnings of prompts. memory: bytes of keys, values and states that running sequences may need in all; the others wait.
    prefill_tokens: prompt tokens read in one step. None of these changes what is written."""

    def __init__(self, lm: HybridLM, tokenizer: Tokenizer, *, max_slots: int = 64, max_length: int = 1024, seed: int = 0,
                 guesses: int = 0, always_guess: bool = False, prefix_bytes: int = 0, memory: int | None = None, prefill_tokens: int = PREFILL_TOKENS) -> None:
        if guesses and (lm.mtp is None or "M" in lm.config.mtp_pattern):
            raise ValueError("speculative decoding needs a model with a multi-token-prediction block without Mamba layers")
        self.guesses, self.always_guess, self.prefix_bytes, self.memory, self.prefill_tokens = guesses, always_guess, prefix_bytes, memory, prefill_tokens
        if max_slots < 1 or max_length < 2:
            raise ValueError(f"the engine needs at least 1 slot and a length of 2, not {max_slots} and {max_length}")
        self.lm, self.tokenizer, self.max_slots, self.max_length, self.seed = lm, tokenizer, max_slots, max_length, seed
        self.eos_ids = [i for i in map(tokenizer.token_to_id, (chat.EOS, chat.IM_END)) if i is not None]
        self._arrived = 0
        self._stamp: list[tuple[int, int]] = []  # of the weights
        self._readers: dict[Sequence, tuple[Request, TextReader]] = {}

    def generate(self, prompts: Seq[str | list[int]], params: SamplingParams | Seq[SamplingParams] | None = None) -> list[RequestOutput]:
        """Continue every prompt; outputs in the order of prompts, samples in the order of k.

        A string prompt may spell special tokens (it is trusted; build untrusted ones with `model.chat.encode_prompt`). Raises ValueError for
        an empty prompt, one that leaves no room to write, or params that do not match the prompts."""
        params = params or SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} SamplingParams")
        outputs, sequences = [], []
        for prompt, wanted in zip(prompts, each):
            request = self.request(prompt, wanted)
            outputs.append(_output(prompt, request))
            sequences += request
        self._forget_old_weights()
        if training := self.lm.training:
            self.lm.eval()
        try:
            for sequence in sequences:
                self.scheduler.add(sequence)
            with self.lm.unchanging():
                while self.scheduler.busy:
                    self.scheduler.step(ROUNDS)
        except BaseException:
            self.__dict__.pop("scheduler", None)  # half-done sequences must not leak into the next call
            self._readers.clear()
            raise
        finally:
            if training:
                self.lm.train()
        self.write_texts(sequences)
        return outputs

    # ---- step by step: one thread owns the engine; requests come and go between steps

    def submit(self, prompt: str | list[int], params: SamplingParams | None = None) -> Request:
        """Queue a prompt; `step` reports what its samples write. Raises ValueError like `generate`, before anything is queued."""
        params = params or SamplingParams()
        sequences = self.request(prompt, params)
        request = Request(_output(prompt, sequences), sequences)
        for sequence in sequences:
            self._readers[sequence] = request, TextReader(self.tokenizer, params.stop)
            self.scheduler.add(sequence)
        return request

    def step(self) -> list[Delta]:
        """One step of the scheduler: what it added to submitted requests, those that ended (or were cancelled) included."""
        if self.lm.training:
            self.lm.eval()
        self._forget_old_weights()
        with self.lm.unchanging():
            ended = self.scheduler.step()
        self.write_texts(ended)
        deltas = []
        for sequence in ended:
            if sequence in self._readers:
                request, reader = self._readers.pop(sequence)
                output, seen = sequence.output, len(reader.ids)
                deltas.append(Delta(request, output.index, reader.finish(output.text), output.token_ids[seen:], output.logprobs and output.logprobs[seen:],
                                    output.finish_reason, output.top_logprobs and output.top_logprobs[seen:]))
        for sequence, (request, reader) in self._readers.items():
            ids, logprobs = self.scheduler.written(sequence, len(reader.ids))
            if ids:
                top = sequence.output.top_logprobs and sequence.output.top_logprobs[-len(ids):]
                deltas.append(Delta(request, sequence.output.index, reader.push(ids), ids, logprobs, top_logprobs=top))
        return deltas

    def cancel(self, request: Request) -> None:
        """Stop a request's samples; their slots are free for the next step, and what was written stays in its output. No-op once finished."""
        for sequence in request.sequences:
            sequence.aborted = True

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.busy

    def stream(self, prompt: str | list[int], params: SamplingParams | None = None) -> Iterator[Delta]:
        """The samples of one prompt as they are written, interleaved. Closing the iterator cancels what is not finished."""
        with closing(self._stream(self.submit(prompt, params))) as deltas:
            yield from deltas

    def _stream(self, request: Request) -> Iterator[Delta]:
        try:
            while not request.finished:
                yield from (delta for delta in self.step() if delta.request is request)
        finally:
            if not request.finished:
                self.cancel(request)
                self.write_texts(self.scheduler.drop_aborted())
                for sequence in request.sequences:
                    self._readers.pop(sequence, None)

    def request(self, prompt: str | list[int], params: SamplingParams) -> list[Sequence]:
        """The n sequences of a prompt, ready for `scheduler.add` (servers add them one by one while others run)."""
        ids = self.encode(prompt)
        vocabulary = self.lm.config.vocab_size
        if not ids:
            raise ValueError("the prompt is empty")
        if len(ids) >= self.max_length:
            raise ValueError(f"the prompt has {len(ids)} tokens; max_length {self.max_length} leaves no room to write")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise ValueError(f"the prompt holds token ids outside 0..{vocabulary - 1}")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            if any(not 0 <= i < vocabulary for i in getattr(params, name) or ()):
                raise ValueError(f"{name} must lie in 0..{vocabulary - 1}")
        seed = params.seed
        if seed is None:
            seed = (self.seed + 1 << 64) + self._arrived  # beyond 64 bits: disjoint from seeds people choose
            self._arrived += 1
        if params.thinking_budget is not None:
            self.scheduler.budget.enable(self.newline_V)
        limit = min(params.max_tokens, self.max_length - len(ids))
        if self.memory is not None and self.scheduler.cache.bytes_of(len(ids) + limit) > self.memory:
            raise ValueError(f"a prompt of {len(ids)} tokens and {limit} new ones need more memory than the engine may use ({self.memory} bytes)")
        matcher = None if params.regex is None and params.json_schema is None else self.grammars.matcher(params.regex, params.json_schema)
        check = self._stop_check(params.stop) if params.stop else None
        scores = None if params.prompt_logprobs is None else PromptScores(ids, params.prompt_logprobs)
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.eos_ids)}
        outputs = [CompletionOutput(k, top_logprobs=[] if params.top_logprobs else None) for k in range(params.n)]
        return [Sequence(ids, params, seed, limit, output, stop_check=check, matcher=matcher and matcher.copy(), scores=scores,
                         adjustment=Adjustment(params, ids, ends, vocabulary) if Adjustment.wanted(params) else None) for output in outputs]

    def write_texts(self, sequences: list[Sequence]) -> None:
        """Fill in the text of finished sequences: without the token or string that stopped them."""
        kept = [s.output.token_ids[:-1] if isinstance(s.output.stop_reason, int) else s.output.token_ids for s in sequences]
        for sequence, text in zip(sequences, self.tokenizer.decode_batch(kept, skip_special_tokens=False)):
            reason = sequence.output.stop_reason
            sequence.output.text = text[:text.index(reason)] if isinstance(reason, str) else text

    @cached_property
    def scheduler(self) -> Scheduler:
        end_thinking = self.tokenizer.token_to_id(chat.END_THINK)
        think = self.tokenizer.token_to_id(chat.THINK)
        budget = ThinkingBudget(self.max_slots, think if think is not None else -1, [end_thinking if end_thinking is not None else 0])
        cache = Cache(self.lm, self.max_slots, self.max_length + self.guesses)
        return Scheduler(self.lm, cache, budget, self.eos_ids, prefill_tokens=self.prefill_tokens, memory=self.memory,
                         prefixes=PrefixStore(cache, self.prefix_bytes) if self.prefix_bytes else None,
                         drafter=Drafter(self.lm, cache, self.guesses, always=self.always_guess) if self.guesses else None)

    @cached_property
    def grammars(self) -> Grammars:
        from model.engine.grammar import Grammars  # only who wants structure loads the library

        end = self.tokenizer.token_to_id(chat.IM_END)
        if not self.eos_ids:
            raise ValueError("structured output needs a tokenizer with an end token")
        return Grammars(self.tokenizer, self.lm.config.vocab_size, end if end is not None else self.eos_ids[0])

    def swap_weights(self, weights: Mapping[str, Tensor]) -> int:
        """Replace parameters by name, between two steps; running sequences go on with the new ones (and the states the old ones left). Returns the
        version that tokens written from now on carry. Raises ValueError if a name is unknown or a shape differs, before anything changes."""
        own = self.lm.state_dict()
        for name, tensor in weights.items():
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"{name}: no such parameter" if name not in own else f"{name}: shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        if self.scheduler.prefixes:
            self.scheduler.prefixes.clear()
        self.scheduler.slots.swapped()
        return self.scheduler.slots.weights_version

    def _forget_old_weights(self) -> None:
        """Prefixes belong to the weights that read them; a trainer changes those in place, without a word."""
        if self.prefix_bytes:
            now = [stamp(p) for p in self.lm.parameters()]
            if now != self._stamp:
                self.scheduler.prefixes.clear()
            self._stamp = now

    @cached_property
    def token_texts(self) -> list[str]:
        """What each token says by itself; bytes of a split character appear as U+FFFD."""
        return self.tokenizer.decode_batch([[i] for i in range(self.lm.config.vocab_size)], skip_special_tokens=False)

    @cached_property
    def newline_V(self) -> np.ndarray:
        if self.tokenizer.token_to_id(chat.END_THINK) is None or self.tokenizer.token_to_id(chat.THINK) is None:
            raise ValueError("a thinking budget needs a tokenizer with <think> and </think>")
        return np.array(["\n" in text for text in self.token_texts])

    def encode(self, prompt: str | list[int]) -> list[int]:
        """A prompt's token ids; its text may spell special tokens."""
        if not isinstance(prompt, str):
            return [int(i) for i in prompt]
        before, self.tokenizer.encode_special_tokens = self.tokenizer.encode_special_tokens, False
        try:
            return self.tokenizer.encode(prompt, add_special_tokens=False).ids
        finally:
            self.tokenizer.encode_special_tokens = before

    def _stop_check(self, stops: tuple[str, ...]) -> Callable[[list[int], int], str | None]:
        """Finds the first stop string in what was written; looks only when the newest token could have completed one."""
        lasts = {s[-1] for s in stops}
        candidates = _candidates(tuple(self.token_texts), frozenset(lasts))

        def check(written: list[int], newest: int) -> str | None:
            if not candidates[newest]:
                return None
            text = self.tokenizer.decode(written, skip_special_tokens=False)
            found = [(text.index(s), s) for s in stops if s in text]
            return min(found)[1] if found else None

        return check


def _output(prompt: str | list[int], sequences: list[Sequence]) -> RequestOutput:
    """What a request's caller gets: filled as its prompt is read and its samples finish."""
    scores = sequences[0].scores
    return RequestOutput([*sequences[0].prompt_ids], [s.output for s in sequences], prompt if isinstance(prompt, str) else None,
                         scores and scores.logprobs, scores.top_logprobs if scores and scores.most_likely else None)


@lru_cache(maxsize=32)
def _candidates(token_texts: tuple[str, ...], lasts: frozenset[str]) -> np.ndarray:
    wanted = lasts | {"\N{REPLACEMENT CHARACTER}"}
    return np.array([any(character in text for character in wanted) for text in token_texts])
