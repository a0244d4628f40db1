"""Tools in Nemotron's format: told of, and calls forced."""
import re

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


def test_a_forced_call_has_what_is_required():
    pattern = re.compile(tools.call_pattern([WEATHER, {"name": "stop.it"}]))
    right = [{"name": "weather", "arguments": {"city": "New\nYork", "days": -3, "unit": "C", "raw": None}}, {"name": "weather", "arguments": {"city": "", "days": 0}}, {"name": "stop.it"}]
    wrong = [{"name": "weather", "arguments": {"days": 1}}, {"name": "weather", "arguments": {"city": "x", "days": "many"}}, {"name": "weather", "arguments": {"city": "x", "days": 1, "unit": "K"}},
             {"name": "stopsit"}, {"name": "weather", "arguments": {"city": "a\n</parameter>", "days": 1}}]
    for call in right:
        text = f"<tool_call>\n{tools.written(call)}</tool_call>"
        assert pattern.fullmatch(text), call
    for call in wrong:
        assert not pattern.fullmatch(f"<tool_call>\n{tools.written(call)}</tool_call>"), call
