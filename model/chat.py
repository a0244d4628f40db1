"""The chat format: how a list of messages becomes text, token ids and a loss mask.

Nemotron-3's turn format, so that our checkpoints and theirs read the same prompt:

    <|im_start|>system
    {system}<|im_end|>                      always emitted, empty when there is no system message
    <|im_start|>user
    {question}<|im_end|>
    <|im_start|>assistant
    <think>
    {reasoning}
    </think>
    {answer}<|im_end|>

Thinking off is `<think></think>` closed at once. Assistant turns before the last user turn lose their thinking (the reader of a
long conversation should not pay for it), unless `truncate_history_thinking=False`. Tools are told of in the system turn, called behind an
assistant's content, and their results share a user's turn (`model/tools.py`); results do not end the exchange that thinking is kept for.

The format is written down twice: `CHAT_TEMPLATE` (jinja, saved beside the model for other programs) and `segments()` (Python,
which also knows which pieces are special tokens and which are trained). A test holds the two together.

Text inside a message can never forge a turn: `encode()` places special tokens by id and encodes everything between them with
special tokens switched off. Only `<think>` and `</think>` of an assistant message are read as tokens, and the tags around calls and results
where the tokenizer has tokens for them.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.tools import CALL, END_CALL, END_RESPONSE, INSTRUCTIONS, MARKS, RESPONSE, Tool, declare, written

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, Any]  # role, content; an assistant's reasoning_content and tool_calls
ROLES = ("system", "user", "assistant", "tool")

# Ids as in Nemotron's tokenizer: </s> 2, <|im_end|> 11 and </think> 13 are stated in its configs; the rest follows their order.
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
IM_START, IM_END, THINK, END_THINK = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
SPECIAL_TOKENS: list[str] = [
    UNK, BOS, EOS, *(f"<SPECIAL_{i}>" for i in range(3, 10)), IM_START, IM_END, THINK, END_THINK, "<SPECIAL_14>", "<SPECIAL_15>",
]

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation. `special`: the text is one special token (a tag of tools: if there is such a token). `trained`: the loss is on
    these tokens."""

    text: str
    special: bool = False
    trained: bool = False


def segments(messages: Sequence[Message], *, tools: Sequence[Tool] = (), add_generation_prompt: bool = False, enable_thinking: bool = True,
             reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> list[Segment]:
    """The conversation as pieces whose texts, joined, are what `CHAT_TEMPLATE` renders.

    An assistant turn is trained when it is rendered whole: a turn that lost its thinking to history truncation would teach the
    model to answer without thinking where it was asked to think. Use `unroll` to train every turn of a long conversation.
    Raises ValueError for a message without a known role, and for a tool or call without a name."""
    roles = [message.get("role") for message in messages]
    last_user = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    system = (messages[0].get("content") or "") if roles[:1] == ["system"] else ""
    out = [Segment(IM_START, special=True), Segment(f"system\n{system}")]
    if tools:
        out += [Segment("\n\n" * bool(system) + declare(tools) + "\n\n"), *_split(INSTRUCTIONS, MARKS)]
    out += _END_OF_TURN
    for index, (role, message) in enumerate(zip(roles, messages)):
        if role not in ROLES:
            raise ValueError(f"message {index}: role must be one of {', '.join(ROLES)}, not {role!r}")
        content = message.get("content") or ""
        if role == "assistant":
            shortened = truncate_history_thinking and index < last_user
            out += [Segment(IM_START, special=True), Segment("assistant\n"), *_assistant(message, shortened), *_END_OF_TURN[1:]]
        elif role == "tool":
            if roles[index - 1:index] != ["tool"]:
                out += [Segment(IM_START, special=True), Segment("user\n")]
            out += [Segment(RESPONSE, special=True), Segment(f"\n{content}\n"), Segment(END_RESPONSE, special=True), Segment("\n")]
            if roles[index + 1:index + 2] != ["tool"]:
                out += _END_OF_TURN
        elif index or role != "system":
            if index == last_user and reasoning_budget is not None:
                content += f"\n\n{{thinking token budget: {reasoning_budget}}}"
            out += [Segment(IM_START, special=True), Segment(f"{role}\n{content}"), *_END_OF_TURN]
    if add_generation_prompt:
        out += [Segment(IM_START, special=True), Segment("assistant\n"), Segment(THINK, special=True)]
        out.append(Segment("\n") if enable_thinking else Segment(END_THINK, special=True))
    return out


_END_OF_TURN = [Segment(IM_END, special=True), Segment("\n")]


def _assistant(message: Message, shortened: bool) -> list[Segment]:
    """What an assistant says, <|im_end|> included; `shortened`: without its thinking."""
    content, reasoning, calls = message.get("content") or "", message.get("reasoning_content") or "", message.get("tool_calls") or ()
    if reasoning.strip():
        content = f"{THINK}\n{reasoning}\n{END_THINK}\n{content}"
    elif THINK not in content and END_THINK not in content:
        content = THINK + END_THINK + content
    whole = content.strip()
    if shortened and END_THINK in content:
        answer = content.split(END_THINK)[-1]
        content = THINK + END_THINK + (answer.strip() if calls else answer)
    trained = content.strip() == whole
    out = [*_split(content.strip(), (THINK, END_THINK), trained), *[Segment("\n", trained=trained)] * bool(calls)]
    for call in calls:
        out += [Segment(CALL, special=True, trained=trained), Segment(f"\n{written(call)}", trained=trained),
                Segment(END_CALL, special=True, trained=trained), Segment("\n", trained=trained)]
    return [*out, Segment(IM_END, special=True, trained=trained)]


def _split(text: str, marks: Sequence[str], trained: bool = False) -> list[Segment]:
    """A text in which each of the marks is a special token."""
    return [Segment(piece, special=piece in marks, trained=trained) for piece in re.split(f"({'|'.join(marks)})", text) if piece]


def render(messages: Sequence[Message], *, tools: Sequence[Tool] = (), add_generation_prompt: bool = False, enable_thinking: bool = True,
           reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> str:
    """The conversation as text: equal to `CHAT_TEMPLATE` rendered with the same arguments."""
    return "".join(s.text for s in segments(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking,
        reasoning_budget=reasoning_budget, truncate_history_thinking=truncate_history_thinking))


def encode(tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Tool] = (), add_generation_prompt: bool = False,
           enable_thinking: bool = True, reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> tuple[list[int], list[int]]:
    """(token ids, loss mask of 0/1), equally long. The mask is 1 on what the assistant says: <think> to <|im_end|>.

    Raises ValueError when the tokenizer lacks one of the special tokens (those of tools it may lack: they are text then)."""
    pieces = segments(messages, tools=tools, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking,
                      reasoning_budget=reasoning_budget, truncate_history_thinking=truncate_history_thinking)
    as_text = {mark for mark in MARKS if tokenizer.token_to_id(mark) is None}
    runs = [(special, trained, [s.text for s in run])  # text next to text is encoded as one
            for (special, trained), run in groupby(pieces, lambda s: (s.special and s.text not in as_text, s.trained))]
    plain = iter(encode_plain(tokenizer, ["".join(texts) for special, _, texts in runs if not special]))
    ids: list[int] = []
    mask: list[int] = []
    for special, trained, texts in runs:
        new = [special_id(tokenizer, text) for text in texts] if special else next(plain)
        ids += new
        mask += [int(trained)] * len(new)
    return ids, mask


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Tool] = (), enable_thinking: bool = True,
                  reasoning_budget: int | None = None) -> list[int]:
    """Token ids up to where the assistant starts to write."""
    return encode(tokenizer, messages, tools=tools, add_generation_prompt=True, enable_thinking=enable_thinking, reasoning_budget=reasoning_budget)[0]


def unroll(messages: Sequence[Message]) -> list[list[Message]]:
    """One conversation for each user turn that is answered, ending before the next user turn, so that every answer is trained
    once and in the form the template shows it in when it is generated."""
    users = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    ends = [*users[1:], len(messages)]
    return [list(messages[:end]) for start, end in zip(users, ends) if any(m.get("role") == "assistant" for m in messages[start:end])]


def split_thinking(text: str) -> tuple[str | None, str]:
    """(reasoning, answer) of an assistant's text; reasoning is None when thinking was never closed."""
    head, closed, answer = text.rpartition(END_THINK)
    if not closed:
        return None, text.strip()
    return head.rpartition(THINK)[2].strip(), answer.strip()


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; ValueError when the tokenizer has none."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token} token: train it with model.chat.SPECIAL_TOKENS")
    return found


def encode_plain(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which the spelling of a special token is ordinary text."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True  # the library's name for "split special tokens like other text"
    try:
        return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = before
