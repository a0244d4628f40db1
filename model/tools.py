"""Tools, as Nemotron-3 knows them: told of in the system turn, called in an assistant's, answered in a user's.

    <tool_call>
    <function=weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

`declare` and `written` make the texts that the chat format puts into turns; `call_pattern` is a regular expression for "call one of these now" (calls are
taken apart again where they are served, `model/serving/calls.py`). A tool or call may stand in OpenAI's wrapper (`{"type": "function", "function": {...}}`).

The words are those the released models were trained on (chat template of Nemotron 3 Nano: NVIDIA-NeMo/Nemotron, src/nemotron/data_prep/templates/nano3.jinja),
so none of them is ours to change.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CALL, END_CALL, RESPONSE, END_RESPONSE = MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
INSTRUCTIONS = """If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>"""

Tool = Mapping[str, Any]  # name, description, parameters (a JSON schema)

_STRING_LINE = r"[^<\n][^\n]*|"  # of a value in a forced call: a line that begins with < could not be told from the tag that ends the value
_VALUES = {"integer": r"-?(?:0|[1-9][0-9]{0,17})", "number": r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?", "boolean": "[Tt]rue|[Ff]alse",
           "null": "null|None"}


# ---- what the model reads


def declare(tools: Sequence[Tool]) -> str:
    """What the system turn says of the tools there are, before the INSTRUCTIONS. Raises ValueError for one without a name."""
    lines = ["# Tools\n\nYou have access to the following functions:\n\n<tools>"]
    for tool in map(unwrapped, tools):
        lines.append(f"<function>\n<name>{tool['name']}</name>")
        if "description" in tool:
            lines.append(f"<description>{str(tool['description']).strip()}</description>")
        lines.append("<parameters>")
        schema = _parameters(tool)
        for name, fields in properties(tool).items():
            lines.append(f"<parameter>\n<name>{name}</name>")
            fields = fields if isinstance(fields, Mapping) else {}
            if "type" in fields:
                lines.append(f"<type>{fields['type']}</type>")
            if "description" in fields:
                lines.append(f"<description>{str(fields['description']).strip()}</description>")
            if "enum" in fields:
                lines.append(f"<enum>{_json(fields['enum'])}</enum>")
            lines += [*_other_keys(fields, ("name", "type", "description", "enum")), "</parameter>"]
        lines += _other_keys(schema, ("type", "properties", "required"))
        if "required" in schema:
            lines.append(f"<required>{_json(schema['required'])}</required>")
        lines += ["</parameters>", *_other_keys(tool, ("type", "name", "description", "parameters")), "</function>"]
    return "\n".join([*lines, "</tools>"])


def written(call: Mapping[str, Any]) -> str:
    """A call as the model writes it, between the two tags and a line break. ValueError if it has no name, or `arguments` is no mapping (but its JSON)."""
    call = unwrapped(call)
    arguments = call.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of a call must be an object, not {arguments!r:.80}")
    parameters = (f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<function={call['name']}>\n{''.join(parameters)}</function>\n"


# ---- what the model must write


def call_pattern(tools: Sequence[Tool]) -> str:
    """A regular expression for exactly one call of one of the tools: the required parameters in the order of the schema, then others as the model likes.

    Numbers, booleans and choices among strings are held to their types; other values are free text, none of whose lines begins with <."""
    return rf"{CALL}\n(?:{'|'.join(map(_one_call, map(unwrapped, tools)))})</function>\n{END_CALL}"


def _one_call(tool: Tool) -> str:
    required = _parameters(tool).get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    each = {name: rf"<parameter={re.escape(name)}>\n(?:{_pattern(schema)})\n</parameter>\n" for name, schema in properties(tool).items()}
    ordered = [each[name] for name in each if name in needed] + [f"(?:{each[name]})?" for name in each if name not in needed]
    return rf"<function={re.escape(tool['name'])}>\n{''.join(ordered)}"


def _pattern(schema: Any) -> str:
    choices, types = schema.get("enum") if isinstance(schema, Mapping) else None, kinds(schema)
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(map(re.escape, choices))
    if types and types <= _VALUES.keys():
        return "|".join(_VALUES[kind] for kind in sorted(types))
    return rf"(?:{_STRING_LINE})(?:\n(?:{_STRING_LINE}))*"


# ---- shapes


def unwrapped(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool or a call without OpenAI's wrapper. Raises ValueError if it has no name."""
    inner = item.get("function", item)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(f"a tool, or a call of one, needs a name: {item!r:.80}")
    return inner


def _parameters(tool: Tool) -> Mapping[str, Any]:
    schema = tool.get("parameters")
    return schema if isinstance(schema, Mapping) else {}


def properties(tool: Tool) -> Mapping[str, Any]:
    """The schemas of its parameters, by name."""
    found = _parameters(tool).get("properties")
    return found if isinstance(found, Mapping) else {}


def kinds(schema: Any) -> set[str]:
    """The types a JSON schema names, alternatives included."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", ())
    found = {named} if isinstance(named, str) else {kind for kind in named if isinstance(kind, str)} if isinstance(named, Iterable) else set()
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found |= {kind for choice in schema[key] if isinstance(choice, Mapping) for kind in kinds({"type": choice.get("type", ())})}
    return found


def _other_keys(fields: Mapping[str, Any], shown: tuple[str, ...]) -> list[str]:
    return [f"<{key}>{_text(value)}</{key}>" for key, value in fields.items() if key not in shown]


def _text(value: Any) -> str:
    return _json(value) if isinstance(value, (Mapping, list, tuple)) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
