"""Calls taken out of an answer while it is written: their names at once, their arguments piece by piece as the JSON that OpenAI's clients join.

Nothing given out is taken back. A call begins once it has named a tool that was offered; what comes before that may stay content. From then on its text,
Nemotron's tags (`model/tools.py`), becomes JSON as it comes: a string as far as it cannot be the tag that ends it, any other value when it ends, for only
then can it be parsed. A call that the model leaves open when it stops is closed for it; one that is cut off at the token limit stays as far as it came.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from model import tools
from model.tools import CALL, END_CALL, Tool

Piece = tuple[str, str]  # ("content", text), ("call", the tool's name), ("arguments", a piece of the call's JSON)


def _begun(mark: str) -> str:
    """An expression for any beginning of the mark, none included."""
    pattern = ""
    for character in reversed(mark):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return pattern


# What ends a piece of text, and (_HELD) the end of a text that may yet become it. Names are short, so little is held.
_NAME, _KEY = r"[^<>\n]{1,64}", r"[^<>\n]{1,256}"
_OPEN_VALUE, _END_VALUE, _END_CALL = "<parameter=", "</parameter>", rf"</function>\s*{END_CALL}"
_END_CALL_HELD = rf"</function>\s*{_begun(END_CALL)}|{_begun('</function>')}"

_CALL_HELD = re.compile(rf"\s*{_begun(CALL)}\Z")
_HEAD = re.compile(rf"\s*<function=({_NAME})>")
_HEAD_HELD = re.compile(rf"\s*(?:{_begun('<function=')}|<function={_NAME})")
_BETWEEN = re.compile(rf"{_OPEN_VALUE}({_KEY})>(?:\n|(?=[^\n]))|{_END_CALL}")
_BETWEEN_HELD = re.compile(rf"(?:{_OPEN_VALUE}{_KEY}>?|{_begun(_OPEN_VALUE)}|{_END_CALL_HELD})\Z")
_VALUE = re.compile(rf"\n?(?:{_END_VALUE}(?=\s*(?:{_OPEN_VALUE}|{_END_CALL}))|(?={_END_CALL}))")
_VALUE_HELD = re.compile(rf"\n?(?:{_END_VALUE}\s*(?:{_begun(_OPEN_VALUE)}|{_END_CALL_HELD})|{_begun(_END_VALUE)}|{_END_CALL_HELD})\Z")


class CallReader:
    """Parts calls of the tools `known` from content; with `one_call`, what follows a first call is dropped. White space before a call, and
    behind the last, belongs to nobody."""

    def __init__(self, known: Sequence[Tool], one_call: bool = False) -> None:
        self.known, self.one_call = {tool["name"]: tool for tool in map(tools.unwrapped, known)}, one_call
        self.held, self.count = "", 0
        self.call: Arguments | None = None  # the one being read

    def push(self, text: str, ended: str | None) -> Iterator[Piece]:
        """What is certain after this further text; `ended` is why it is the last, if it is (OpenAI's finish_reason)."""
        self.held += text
        while True:
            if self.one_call and self.count and not self.call:
                self.held = ""
                return
            if self.call:
                piece, self.held, closed = self.call.push(self.held, ended)
                yield "arguments", piece
                if not closed:
                    return
                self.call = None
            elif not (yield from self._content(ended)):
                return

    def _content(self, ended: str | None) -> Iterator[Piece]:
        """Up to the next call; returns whether there was a mark to go on behind."""
        content, found, rest = self.held.partition(CALL)
        if not found:
            if ended:
                certain, self.held = content.rstrip() if self.count else content, ""
            else:
                certain = content[:_CALL_HELD.search(content).start()]
                self.held = content[len(certain):]
            yield "content", certain
            return False
        head = _HEAD.match(rest)
        if head and head[1] in self.known:
            self.held, self.call = rest[head.end():], Arguments(self.known[head[1]])
            self.count += 1
            yield "content", content.rstrip()
            yield "call", head[1]
        elif head or ended or not _HEAD_HELD.fullmatch(rest):
            self.held = rest
            yield "content", content + found
        else:
            certain = content.rstrip()
            self.held = self.held[len(certain):]
            yield "content", certain
            return False
        return True


class Arguments:
    """The parameters of one call, made JSON. A value that does not parse as its declared type is the string that was written: whoever runs the tool can say
    what is wrong with it. Of parameters with one name the first counts; what stands between parameters does not."""

    def __init__(self, tool: Tool) -> None:
        self.schemas = tools.properties(tool)
        self.keys: set[str] = set()
        self.value: _Value | None = None  # the one being read

    def push(self, text: str, ended: str | None) -> tuple[str, str, bool]:
        """(piece of JSON, text not yet read, whether the call is closed)."""
        out = []
        while True:
            found = (_VALUE if self.value else _BETWEEN).search(text)
            if not found:
                break
            if self.value:
                out += [self.value.push(text[:found.start()]), self.value.close()]
                self.value = None
            elif found[1] is None:
                return "".join([*out, self._close()]), text[found.end():], True
            else:
                out.append(self._open(found[1]))
            text = text[found.end():]
        held = (_VALUE_HELD if self.value else _BETWEEN_HELD).search(text).start()
        if self.value:
            out.append(self.value.push(text[:held]))
        if ended != "stop":
            return "".join(out), text[held:], False
        return "".join([*out, self.value.close() if self.value else "", self._close()]), "", True

    def _open(self, key: str) -> str:
        self.value = _Value(self.schemas.get(key), silent=key in self.keys)
        before = "" if self.value.silent else f"{', ' if self.keys else '{'}{json.dumps(key, ensure_ascii=False)}: "
        self.keys.add(key)
        return before + self.value.begin()

    def _close(self) -> str:
        return "}" if self.keys else "{}"


class _Value:
    """One parameter's, streamed if it can only be a string; `silent` values are read and not given out."""

    def __init__(self, schema: Any, silent: bool) -> None:
        self.kinds, self.silent, self.parts = tools.kinds(schema), silent, []
        self.streams = not silent and (not self.kinds or ("string" in self.kinds and "null" not in self.kinds))

    def begin(self) -> str:
        return '"' if self.streams else ""

    def push(self, text: str) -> str:
        if self.streams:
            return json.dumps(text, ensure_ascii=False)[1:-1]
        self.parts.append(text)
        return ""

    def close(self) -> str:
        return '"' if self.streams else "" if self.silent else json.dumps(typed("".join(self.parts), self.kinds), ensure_ascii=False)


def typed(text: str, kinds: set[str]) -> Any:
    """A value as its declared types have it, or the text."""
    if text in ("null", "None") and "null" in kinds:
        return None
    if "string" in kinds or not kinds:
        return text
    if "boolean" in kinds and text in ("True", "False"):  # as the template itself spells them
        return text == "True"
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
