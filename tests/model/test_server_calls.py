"""Calls are parted from content and made JSON piece by piece: whatever the pieces, they join to the same, and nothing is taken back."""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import tools
from model.serving.calls import CallReader
from model.serving.pieces import AnswerReader

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}, "raw": {"type": ["boolean", "null"]},
    "at": {"type": "array", "items": {"type": "number"}}, "note": {"type": ["string", "null"]}}}}}
KNOWN = [WEATHER, {"name": "stop"}]
VALUES = {"city": st.text(alphabet="ab <>/\n=é\"\\\u2028😀", max_size=12), "days": st.integers(-10**20, 10**20), "unit": st.sampled_from("CF"),
          "raw": st.none() | st.booleans(), "at": st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
          "note": st.none() | st.sampled_from(["", "nul", "Nones", "</parameter", "</parameter>\n</function>", "<parameter=", "\n\n"])}
CALLS = st.tuples(st.just("weather"), st.fixed_dictionaries({}, optional=VALUES)) | st.just(("stop", {}))


def pieces_of(text, cuts=(), ended="stop", **how):
    """What a reader gives out of a text that comes in pieces."""
    reader, ends = CallReader(KNOWN, **how), [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip([0, *ends], ends)]
    return [piece for i, part in enumerate(parts) for piece in reader.push(part, ended if i == len(parts) - 1 else None) if piece[1]]


def joined(pieces):
    """(content, [(name, arguments as JSON)])."""
    content, calls = "", []
    for kind, piece in pieces:
        if kind == "content":
            content += piece
        elif kind == "call":
            calls.append((piece, ""))
        else:
            calls[-1] = calls[-1][0], calls[-1][1] + piece
    return content, calls


def texts_of(calls):
    return "\n".join(f"{tools.CALL}\n{tools.written({'name': name, 'arguments': arguments})}{tools.END_CALL}" for name, arguments in calls)


def read(text, **how):
    content, calls = joined(pieces_of(text, **how))
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab <\n", max_size=8), st.lists(CALLS, max_size=3), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cuts_join_to_the_calls_that_were_written(said, calls, cuts):
    content, got = joined(pieces_of(said + texts_of(calls), cuts))
    assert got == [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    assert content == (said.rstrip() if calls else said)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<tool_call>", "\n", " ", "<function=weather>", "<function=other>", "<parameter=city>", "<parameter=days>", "<parameter=note>", "</parameter>", "</function>",
                                 "</tool_call>", "x", "<", "null", '"', "1"]), max_size=16).map("".join), st.lists(st.integers(0, 500), max_size=12), st.sampled_from(["stop", "length"]))
def test_any_text_is_read_alike_however_it_is_cut(text, cuts, ended):
    whole = joined(pieces_of(text, ended=ended))
    assert joined(pieces_of(text, cuts, ended)) == joined(pieces_of(text, range(len(text)), ended)) == whole
    for _, arguments in whole[1][:-1] if ended == "length" else whole[1]:
        assert isinstance(json.loads(arguments), dict)


def test_strings_come_as_they_are_written_and_other_values_whole():
    reader, seen = CallReader(KNOWN), []
    for part in ("<tool_call>\n<function=weather>", "\n<parameter=city>\n", "New ", "York\n", "</par", "ty>", "\n</parameter>", "\n<parameter=days>\n1", "2", "\n</parameter>\n</function>", "\n</tool_call>"):
        seen.append("".join(piece for _, piece in reader.push(part, None)))
    assert seen == ["weather", '{"city": "', "New ", "York", "", "\\n</party>", "", '", "days": ', "", "", "12}"]


@pytest.mark.parametrize("schema, text, value", [
    ({"type": "string"}, "5", "5"), ({}, "5", "5"), ({"type": "integer"}, "5", 5), ({"type": "integer"}, "five", "five"), ({"type": "number"}, "NaN", "NaN"),
    ({"type": "boolean"}, "True", True), ({"type": "boolean"}, "false", False), ({"type": "object"}, '{"a": [1]}', {"a": [1]}), ({"type": "array"}, "[" * 100_000, "[" * 100_000),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None), ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7), ({"type": ["string", "null"]}, "null", None),
    ({"type": ["string", "null"]}, "nul", "nul"), ({"type": "integer"}, "9" * 5000, "9" * 5000), ({"type": 7}, "x", "x"), (True, "x", "x"), ({"anyOf": [True, {"type": "string"}]}, "1", "1"),
])
def test_values_take_their_declared_types(schema, text, value):
    reader = CallReader([{"name": "f", "parameters": {"properties": {"p": schema}}}])
    (_, arguments), = joined(reader.push(f"<tool_call><function=f>\n<parameter=p>\n{text}\n</parameter>\n</function></tool_call>", "stop"))[1]
    assert json.loads(arguments) == {"p": value}


@pytest.mark.parametrize("text, content, calls", [
    ("<tool_call><function=weather><parameter=city>Rome</parameter></function></tool_call>", "", [("weather", {"city": "Rome"})]),
    ("<tool_call>\n<function=weather>\n<parameter=new>\n1\n</parameter>\n</function>\n</tool_call>", "", [("weather", {"new": "1"})]),
    ("<tool_call>\n<function=weather>\nwell, <parameter=city>\nRome\n</parameter> or\n</function>\n</tool_call>", "", [("weather", {"city": "Rome\n</parameter> or"})]),
    ("<tool_call>\n<function=weather>\n<parameter=city>\nA\n</parameter>\n<parameter=city>\nB\n</parameter>\n</function>\n</tool_call>", "", [("weather", {"city": "A"})]),
    ("a\n<tool_call>\n<function=weather>\n<parameter=city>\nRo</par", "a", [("weather", {"city": "Ro"})]),  # the model stopped: the call is closed for it
    ("<tool_call>\n<function=weather>\n<parameter=days>\n3", "", [("weather", {"days": 3})]), ("<tool_call><function=stop>", "", [("stop", {})]),
    ("<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n", "", [("weather", {"days": 3})]),
    ("a <tool_call>\n<function=other>\n</function>\n</tool_call> b", "a <tool_call>\n<function=other>\n</function>\n</tool_call> b", []),
    ("<tool_call></tool_call>", "<tool_call></tool_call>", []), ("a <tool_ca", "a <tool_ca", []), ("<tool_call>\n<func", "<tool_call>\n<func", []), (" \n", " \n", []),
    ('<tool_call>{"name": "weather", "arguments": {}}</tool_call>', '<tool_call>{"name": "weather", "arguments": {}}</tool_call>', []),
    ("<tool_call><tool_call><function=stop></function></tool_call>\n", "<tool_call>", [("stop", {})]), (f"<tool_call><function={'f' * 200}>", f"<tool_call><function={'f' * 200}>", []),
])
def test_calls_are_read_leniently_but_not_made_up(text, content, calls):
    assert read(text) == read(text, cuts=range(len(text))) == (content, calls)


@pytest.mark.parametrize("text, arguments", [
    ("<tool_call>\n<function=weather>", ""), ("<tool_call>\n<function=weather>\n<parameter=city>\nRom", '{"city": "Rom'), ("<tool_call>\n<function=weather>\n<parameter=days>\n1", '{"days": '),
    ("<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>", '{"city": "Rome'),
])
def test_a_call_that_is_cut_off_stays_as_far_as_it_came(text, arguments):
    assert joined(pieces_of(text, ended="length")) == joined(pieces_of(text, range(len(text)), "length")) == ("", [("weather", arguments)])


def test_one_call_drops_what_follows():
    text = "a\n" + texts_of([("stop", {}), ("weather", {"days": 1})]) + "\nb"
    assert read(text, one_call=True) == read(text, cuts=range(len(text)), one_call=True) == ("a", [("stop", {})])


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_thinking_content_and_calls_do_not_depend_on_where_a_stream_is_cut(size):
    calls = texts_of([("weather", {"city": "Rome </tool_call>, Italy", "days": 2}), ("stop", {})])
    text = f"why <tool_call>\n</think>\n\nA <tool_x> \n{calls}\nB\n{calls} <tool_call>\n<function=other>\n"
    reader, got = AnswerReader(thinking=True, known=KNOWN), {}
    cuts = [text[i:i + size] for i in range(0, len(text), size)]
    for i, cut in enumerate(cuts):
        for field, piece in reader.push(cut, "stop" if i == len(cuts) - 1 else None):
            got.setdefault(field, []).append(piece)
    assert "".join(got["reasoning_content"]) == "why <tool_call>\n" and got["call"] == ["weather", "stop"] * 2
    assert "".join(got["content"]) == "A <tool_x>\nB <tool_call>\n<function=other>"


@pytest.mark.parametrize("text", ["<tool_call>\n<function=weather>\n<parameter=city>\n" + "a<b\n" * 3000, "<tool_call>\n<function=weather>\n<parameter=at>\n[" + "1, " * 3000,
                                  "<tool_call>\n<function=weather>\n" + "x " * 3000, "<tool_call>\n<function=weather>\n" + "<parameter=" * 1000, "<tool_call> <" * 1000])
def test_little_is_held_however_long_a_text(text):
    """So each piece is looked at about once."""
    reader = CallReader(KNOWN)
    for character in text:
        list(reader.push(character, None))
        assert len(reader.held) < 400
