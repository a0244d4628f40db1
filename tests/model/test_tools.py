"""Tools in Nemotron's format: told, called, and calls read back in their types; what is no call is none."""
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import tools

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now. ", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": " Which "}, "days": {"type": "integer", "minimum": 1},
                                     "unit": {"enum": ["C", "F"]}, "raw": {"type": ["boolean", "null"]}, "at": {"type": "array", "items": {"type": "number"}}},
    "required": ["city", "days"], "additionalProperties": False}, "strict": True}}


def test_a_tool_is_told_of_as_the_template_has_it():
    assert tools.declare([WEATHER]) == """# Tools

You have access to the following functions:

<tools>
<function>
<name>weather</name>
<description>Now.</description>
<parameters>
<parameter>
<name>city</name>
<type>string</type>
<description>Which</description>
</parameter>
<parameter>
<name>days</name>
<type>integer</type>
<minimum>1</minimum>
</parameter>
<parameter>
<name>unit</name>
<enum>["C", "F"]</enum>
</parameter>
<parameter>
<name>raw</name>
<type>['boolean', 'null']</type>
</parameter>
<parameter>
<name>at</name>
<type>array</type>
<items>{"type": "number"}</items>
</parameter>
<additionalProperties>False</additionalProperties>
<required>["city", "days"]</required>
</parameters>
<strict>True</strict>
</function>
</tools>"""


VALUES = {"city": st.text(alphabet="ab <>/\n=é", max_size=12), "days": st.integers(-10**20, 10**20), "unit": st.sampled_from("CF"),
          "raw": st.none() | st.booleans(), "at": st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_written_is_read_back(arguments):
    text = tools.written({"name": "weather", "arguments": arguments})
    assert text.endswith("</function>\n")
    assert tools.read("\n" + text.removesuffix("</function>\n"), [WEATHER]) == ("weather", arguments)


@pytest.mark.parametrize("schema, text, value", [
    ({"type": "string"}, "5", "5"), ({}, "5", "5"), ({"type": "integer"}, "5", 5), ({"type": "integer"}, "five", "five"), ({"type": "number"}, "NaN", "NaN"),
    ({"type": "boolean"}, "True", True), ({"type": "boolean"}, "false", False), ({"type": "object"}, '{"a": [1]}', {"a": [1]}), ({"type": "array"}, "[" * 100_000, "[" * 100_000),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None), ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7), ({"type": ["string", "null"]}, "null", None),
    ({"type": "integer"}, "9" * 5000, "9" * 5000), ({"type": 7}, "x", "x"), (True, "x", "x"), ({"anyOf": [True, {"type": "string"}]}, "1", "1"),
])
def test_values_take_their_declared_types(schema, text, value):
    tool = {"name": "f", "parameters": {"properties": {"p": schema}}}
    assert tools.read(f"<function=f>\n<parameter=p>\n{text}\n</parameter>\n", [tool]) == ("f", {"p": value})


def test_calls_are_read_leniently_but_not_made_up():
    assert tools.read("<function=weather>", [WEATHER]) == ("weather", {})
    assert tools.read("<function=weather><parameter=city>Rome</parameter>", [WEATHER]) == ("weather", {"city": "Rome"})
    assert tools.read("\n<function=weather>\n<parameter=new>\n1\n</parameter>\n", [WEATHER]) == ("weather", {"new": "1"})
    for text in ("", "weather", "<function=other>\n", "<function=>\n", "<function=weather>\nwell, <parameter=city>\nRome\n</parameter>\n", "<function=weather>\n<parameter=city>\nRome\n",
                 '{"name": "weather", "arguments": {}}', "<function=weather>\n<parameter=city>\nRome\n</parameter>\nmore"):
        assert tools.read(text, [WEATHER]) is None, text


def test_a_forced_call_has_what_is_required():
    pattern = re.compile(tools.call_pattern([WEATHER, {"name": "stop.it"}]))
    right = [{"name": "weather", "arguments": {"city": "New\nYork", "days": -3, "unit": "C", "raw": None}}, {"name": "weather", "arguments": {"city": "", "days": 0}}, {"name": "stop.it"}]
    wrong = [{"name": "weather", "arguments": {"days": 1}}, {"name": "weather", "arguments": {"city": "x", "days": "many"}}, {"name": "weather", "arguments": {"city": "x", "days": 1, "unit": "K"}},
             {"name": "stopsit"}, {"name": "weather", "arguments": {"city": "a\n</parameter>", "days": 1}}]
    for call in right:
        text = f"<tool_call>\n{tools.written(call)}</tool_call>"
        assert pattern.fullmatch(text) and tools.read(text[len(tools.CALL):].split("</function>")[0], [WEATHER, {"name": "stop.it"}]) == (call["name"], json.loads(json.dumps(call.get("arguments", {}))))
    for call in wrong:
        assert not pattern.fullmatch(f"<tool_call>\n{tools.written(call)}</tool_call>"), call
