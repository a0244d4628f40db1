"""Reading the final answer out of a response and comparing it with the right one.

A response is `<think> reasoning </think> answer`; the opening tag may be missing because the prompt already wrote it. A verdict
says in a short code what was wrong, because these codes become the reasons of rejected rows and the metrics of RL:

    ok                    right answer, right form
    format.truncated      cut off by the length limit
    format.no_think       thinking was never closed, or there is none
    format.many_think     more than one thinking block, or an opening tag inside it
    format.stray_token    a turn token (<|im_start|>, <s>, ...) in the text
    format.no_answer      nothing after </think>
    answer.wrong          another value
    answer.unreadable     not a number where one was asked for
    answer.timeout        the mathematics could not be compared in time
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_STRAY = re.compile(r"<\|im_(?:start|end)\|>|</?s>|<unk>|<SPECIAL_\d+>")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_LONGEST_NUMBER = 400  # characters; longer texts are no numbers anybody asked for, and parsing them costs


@dataclass(frozen=True)
class Verdict:
    """ok: accepted. reward: 1.0 or 0.0. reason: a short code, "ok" when accepted."""

    ok: bool
    reward: float
    reason: str


OK = Verdict(True, 1.0, "ok")


def refused(reason: str) -> Verdict:
    return Verdict(False, 0.0, reason)


def check_format(response: str, *, truncated: bool = False) -> tuple[str, Verdict | None]:
    """(final answer, None) of a well-formed response, else ("", the verdict that refuses it)."""
    if truncated:
        return "", refused("format.truncated")
    text = response.strip()
    body = text.removeprefix("<think>")
    if "</think>" not in body:
        return "", refused("format.no_think")
    if body.count("</think>") > 1 or "<think>" in body:
        return "", refused("format.many_think")
    if _STRAY.search(body):
        return "", refused("format.stray_token")
    answer = final_answer(body)
    return (answer, None) if answer else ("", refused("format.no_answer"))


def final_answer(response: str) -> str:
    """The answer's text: after </think>, the last \\boxed{...} if there is one, without "Answer:", $ and a final full stop."""
    answer = response.rpartition("</think>")[2].strip()
    boxed = _BOXED.findall(answer)
    if boxed:
        answer = boxed[-1]
    answer = re.sub(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*", "", answer.strip(), flags=re.IGNORECASE)
    return answer.strip().strip("$").strip().removesuffix(".").strip()


def as_number(text: str) -> Fraction | None:
    """The exact value of "12", "-3.50", "1,200", "5/6"; None for anything else."""
    text = text.strip()
    if len(text) > _LONGEST_NUMBER:
        return None
    if re.fullmatch(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?\d+/\d+", text, re.ASCII):
        top, bottom = text.split("/")
        return Fraction(int(top), int(bottom)) if int(bottom) else None
    if not re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)", text, re.ASCII):
        return None
    try:
        return Fraction(Decimal(text))
    except InvalidOperation:
        return None


def same_answer(right: str, given: str, equivalence: str) -> Verdict:
    """Compares as "exact" text, as "number", or as "math" (anything math-verify finds equal)."""
    if given == right:
        return OK
    if equivalence == "exact":
        return refused("answer.wrong")
    expected, number = as_number(right), as_number(given)
    if expected is not None and number is not None:
        return OK if expected == number else refused("answer.wrong")
    if equivalence == "number":
        return refused("answer.unreadable" if number is None else "answer.wrong")
    from generators.verify.mathematics import equal  # starts a child process: only tasks that need it

    verdict = equal(right, given)
    if verdict is None:
        return refused("answer.timeout")
    return OK if verdict else refused("answer.wrong")
