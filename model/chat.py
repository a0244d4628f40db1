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
long conversation should not pay for it), unless `truncate_history_thinking=False`.

The format is written down twice: `CHAT_TEMPLATE` (jinja, saved beside the model for other programs) and `segments()` (Python,
which also knows which pieces are special tokens and which are trained). A test holds the two together.

Text inside a message can never forge a turn: `encode()` places special tokens by id and encodes everything between them with
special tokens switched off. Only `<think>` and `</think>` of an assistant message are read as tokens.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, str]

# Ids as in Nemotron's tokenizer: </s> 2, <|im_end|> 11 and </think> 13 are stated in its configs; the rest follows their order.
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
IM_START, IM_END, THINK, END_THINK = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
SPECIAL_TOKENS: list[str] = [
    UNK, BOS, EOS, *(f"<SPECIAL_{i}>" for i in range(3, 10)), IM_START, IM_END, THINK, END_THINK, "<SPECIAL_14>", "<SPECIAL_15>",
]

CHAT_TEMPLATE = r"""
{%- set thinking = enable_thinking if enable_thinking is defined else true -%}
{%- set truncate = truncate_history_thinking if truncate_history_thinking is defined else true -%}
{%- set budget = reasoning_budget if reasoning_budget is defined else none -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if not messages or messages[0].role != 'system' -%}
  {{- '<|im_start|>system\n<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else '' -%}
  {%- if message.role == 'assistant' -%}
    {%- set reasoning = message.reasoning_content if message.reasoning_content is defined and message.reasoning_content is string else '' -%}
    {%- if reasoning | trim -%}
      {%- set content = '<think>\n' ~ reasoning ~ '\n</think>\n' ~ content -%}
    {%- elif '<think>' not in content and '</think>' not in content -%}
      {%- set content = '<think></think>' ~ content -%}
    {%- endif -%}
    {%- if truncate and loop.index0 < last.user and '</think>' in content -%}
      {%- set content = '<think></think>' ~ content.split('</think>')[-1] -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' ~ (content | trim) ~ '<|im_end|>\n' -}}
  {%- elif loop.index0 == last.user and budget is not none -%}
    {{- '<|im_start|>user\n' ~ content ~ '\n\n{thinking token budget: ' ~ budget ~ '}<|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' ~ ('<think>\n' if thinking else '<think></think>') -}}
{%- endif -%}
""".strip()


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation. `special`: the text is one special token. `trained`: the loss is on these tokens."""

    text: str
    special: bool = False
    trained: bool = False


def segments(messages: Sequence[Message], *, add_generation_prompt: bool = False, enable_thinking: bool = True,
             reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> list[Segment]:
    """The conversation as pieces whose texts, joined, are what `CHAT_TEMPLATE` renders.

    An assistant turn is trained when it is rendered whole: a turn that lost its thinking to history truncation would teach the
    model to answer without thinking where it was asked to think. Use `unroll` to train every turn of a long conversation.
    Raises ValueError for a message without a known role."""
    last_user = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    out: list[Segment] = []
    if not messages or messages[0].get("role") != "system":
        out += [Segment(IM_START, special=True), Segment("system\n"), Segment(IM_END, special=True), Segment("\n")]
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {index}: role must be system, user or assistant, not {role!r}")
        content = message.get("content") or ""
        out.append(Segment(IM_START, special=True))
        if role == "assistant":
            whole = _with_thinking(message)
            truncated = truncate_history_thinking and index < last_user and END_THINK in whole
            shown = THINK + END_THINK + whole.split(END_THINK)[-1] if truncated else whole
            trained = shown.strip() == whole.strip()
            out.append(Segment("assistant\n"))
            out += [Segment(piece, special=piece in (THINK, END_THINK), trained=trained)
                    for piece in re.split(f"({THINK}|{END_THINK})", shown.strip()) if piece]
            out.append(Segment(IM_END, special=True, trained=trained))
        else:
            if index == last_user and reasoning_budget is not None:
                content += f"\n\n{{thinking token budget: {reasoning_budget}}}"
            out += [Segment(f"{role}\n{content}"), Segment(IM_END, special=True)]
        out.append(Segment("\n"))
    if add_generation_prompt:
        out += [Segment(IM_START, special=True), Segment("assistant\n"), Segment(THINK, special=True)]
        out.append(Segment("\n") if enable_thinking else Segment(END_THINK, special=True))
    return out


def render(messages: Sequence[Message], *, add_generation_prompt: bool = False, enable_thinking: bool = True,
           reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> str:
    """The conversation as text: equal to `CHAT_TEMPLATE` rendered with the same arguments."""
    return "".join(s.text for s in segments(
        messages, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking,
        reasoning_budget=reasoning_budget, truncate_history_thinking=truncate_history_thinking))


def encode(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False, enable_thinking: bool = True,
           reasoning_budget: int | None = None, truncate_history_thinking: bool = True) -> tuple[list[int], list[int]]:
    """(token ids, loss mask of 0/1), equally long. The mask is 1 on what the assistant says: <think> to <|im_end|>.

    Raises ValueError when the tokenizer lacks one of the special tokens."""
    pieces = segments(messages, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking,
                      reasoning_budget=reasoning_budget, truncate_history_thinking=truncate_history_thinking)
    plain = iter(encode_plain(tokenizer, [s.text for s in pieces if not s.special]))
    ids: list[int] = []
    mask: list[int] = []
    for piece in pieces:
        new = [special_id(tokenizer, piece.text)] if piece.special else next(plain)
        ids += new
        mask += [int(piece.trained)] * len(new)
    return ids, mask


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], *, enable_thinking: bool = True,
                  reasoning_budget: int | None = None) -> list[int]:
    """Token ids up to where the assistant starts to write."""
    return encode(tokenizer, messages, add_generation_prompt=True, enable_thinking=enable_thinking,
                  reasoning_budget=reasoning_budget)[0]


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


def _with_thinking(message: Message) -> str:
    content, reasoning = message.get("content") or "", message.get("reasoning_content") or ""
    if reasoning.strip():
        return f"{THINK}\n{reasoning}\n{END_THINK}\n{content}"
    return content if THINK in content or END_THINK in content else THINK + END_THINK + content
