"""Answers are read as a person would read them, mathematics cannot hang, programs cannot escape their limits."""
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.verify.answer import as_number, check_format, final_answer, same_answer
from generators.verify.mathematics import MathVerifier
from generators.verify.sandbox import Limits, check_program, isolation, run_python


@pytest.mark.parametrize("response,reason", [
    ("1+1=2\n</think>\n2", None),
    ("<think>\n1+1=2\n</think>\n2", None),
    ("<think></think>2", None),
    ("<think>\n1+1=2", "format.no_think"),
    ("2", "format.no_think"),
    ("a</think>b</think>2", "format.many_think"),
    ("<think>a<think>b</think>2", "format.many_think"),
    ("<think>a</think>", "format.no_answer"),
    ("<think>a</think>2<|im_end|>", "format.stray_token"),
    ("<think>a</s></think>2", "format.stray_token"),
    ("", "format.no_think"),
])
def test_format(response, reason):
    answer, verdict = check_format(response)
    assert (verdict.reason if verdict else None) == reason
    assert reason is not None or answer == "2"
    assert check_format(response, truncated=True)[1].reason == "format.truncated"


@pytest.mark.parametrize("text,answer", [
    ("x</think>\n 12.\n", "12"), ("</think>The answer is 7", "7"), ("</think>Answer: $3$", "3"), ("</think>so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
    ("</think>3.5", "3.5"), ("4 </think>", ""),
])
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@settings(max_examples=100, deadline=None)
@given(st.fractions(), st.integers(-10**12, 10**12), st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-10**9, max_value=10**9))
def test_numbers_are_read_exactly(fraction, integer, decimal):
    assert as_number(f"{fraction.numerator}/{fraction.denominator}") == fraction
    assert as_number(str(integer)) == as_number(f"{integer:,}") == integer
    assert as_number(f"{decimal:f}") == Fraction(decimal)


@pytest.mark.parametrize("text", ["", "-", "1e5", "nan", "12 apples", "1,23", "5/0", "٣", "²", "9" * 10_000, "1_000", "0x10"])
def test_no_number(text):
    assert as_number(text) is None


def test_equivalences():
    assert same_answer("12", "12.0", "number").ok and not same_answer("12", "12.0", "exact").ok
    assert same_answer("12", "13", "number").reason == "answer.wrong"
    assert same_answer("12", "twelve", "number").reason == "answer.unreadable"
    assert same_answer("5/6", "10/12", "math").ok and same_answer("5/6", "\\frac{5}{6}", "math").ok
    assert same_answer("5/6", "\\frac{5}{7}", "math").reason == "answer.wrong"
    assert same_answer("5/6", "\\frac{", "math").reason == "answer.wrong"


def test_hanging_mathematics_is_killed_and_the_next_question_answered():
    verifier = MathVerifier(timeout=1.0)
    try:
        assert verifier.equal("1/2", "0.5") is True  # starts the child
        started = time.monotonic()
        assert verifier.equal("9", "9^{9^{9^{9^{9}}}}") is None
        assert time.monotonic() - started < 10
        assert verifier._child is None
        verifier.timeout = 5.0
        assert verifier.equal("x+y", "y+x") is True
        assert verifier.equal("2", "3") is False
    finally:
        verifier.close()


FAST = Limits(wall=5, cpu=1, memory=256 << 20, output=1 << 16)


@pytest.mark.parametrize("code,status", [
    ("print(input()[::-1])", "ok"), ("1/0", "error"), ("import sys; sys.exit(3)", "error"), ("syntax error", "error"),
    ("while True: pass", "timeout"), ("x = bytearray(1 << 30)", "error"), ("print('x' * 10**7)", "error"),
    ("open('f','wb').write(b'x' * 10**7)", "error"), ("import os; os.kill(os.getpid(), 9)", "timeout"),
])
def test_programs_end_as_they_should(code, status):
    done = run_python(code, "abc\n", FAST)
    assert done.status == status
    assert status != "ok" or done.stdout == "cba\n"
    assert len(done.stdout) <= FAST.output


def test_wall_clock_kills_everything_it_started(tmp_path):
    marker = tmp_path / "alive"
    code = f"import os, time\nif os.fork() == 0:\n    time.sleep(1.5)\n    open({str(marker)!r}, 'w')\ntime.sleep(60)"
    started = time.monotonic()
    assert run_python(code, limits=Limits(wall=0.7)).status == "timeout"
    assert time.monotonic() - started < 5
    time.sleep(1.5)
    assert not marker.exists()


def test_no_environment_and_no_network(monkeypatch):
    monkeypatch.setenv("GRISTMILL_TOKEN", "hush")
    assert "hush" not in run_python("import os; print(dict(os.environ))").stdout
    if isolation() == "namespaces":
        assert "unreachable" in run_python("import socket; socket.create_connection(('192.0.2.1', 80), 1)").stderr


def test_check_program():
    cases = [("2 3\n", "5\n"), ("10 -4\n", "6")]
    assert check_program("a, b = map(int, input().split())\nprint(a + b)", cases, FAST).ok
    assert check_program("print(5)", cases, FAST).reason == "code.wrong_output"
    assert check_program("print(1/0)", cases, FAST).reason == "code.error"
    assert check_program("import time; time.sleep(9)", cases, Limits(wall=0.3)).reason == "code.timeout"
