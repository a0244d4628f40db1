"""Tools over the official client: shown to the model, its calls parted from what it says, results read, calls forced."""
import json
import re
from dataclasses import replace

import pytest
from test_server_clients import client, openai, served

from model import chat

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather somewhere.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["unit", "days"]}}},
         {"type": "function", "function": {"name": "stop"}}]
ASK = {"model": "toy", "messages": [{"role": "user", "content": "Rain in Rome?"}], "tools": TOOLS, "max_tokens": 700}
CALLS = """<tool_call>
<function=weather>
<parameter=city>
Rome </tool_call>, Italy
</parameter>
<parameter=days>
2
</parameter>
</function>
</tool_call>
<tool_call>
<function=stop>
</function>
</tool_call>"""


@pytest.fixture(scope="module")
def server(toy):
    with served(toy, length=3000) as running:
        yield running


@pytest.fixture
def says(server, monkeypatch):
    """Makes the model write a certain text, and shows the prompts it was given."""
    prompts, submit = [], server[0].submit

    def make(text):
        monkeypatch.setattr(server[0], "submit", lambda prompt, params: (prompts.append(prompt), submit(prompt, replace(params, regex=re.escape(text), temperature=0.0)))[1])
        return prompts

    return make


def stream_of(talk, **asked):
    """A whole message put together from a stream, by the client's own accumulator."""
    with talk.stream(**asked) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().choices[0]


def test_calls_are_parted_from_what_is_said(server, says):
    prompts = says(f"Rain is weather.\n</think>\nLet me look.\n\n{CALLS}\n")
    talk = client(server[1]).chat.completions
    whole, streamed = talk.create(**ASK).choices[0], stream_of(talk, **ASK)
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
        assert choice.message.reasoning_content.strip() == "Rain is weather."
        first, second = choice.message.tool_calls
        assert (first.type, first.function.name, json.loads(first.function.arguments)) == ("function", "weather", {"city": "Rome </tool_call>, Italy", "days": 2})
        assert (second.function.name, second.function.arguments) == ("stop", "{}") and first.id != second.id
    shown = chat.encode_prompt(server[0].tokenizer, ASK["messages"], tools=TOOLS)
    assert prompts == [shown, shown]


def test_calls_and_results_are_read_in_the_next_turn(server, says):
    prompts = says("It rains.")
    talk = client(server[1]).chat.completions
    asked = ASK | {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    says(CALLS)
    message = talk.create(**asked).choices[0].message
    assert message.content is None and len(message.tool_calls) == 2
    says("It rains.")
    results = [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in zip(message.tool_calls, ("wet", "done"))]
    answer = talk.create(**asked | {"messages": [*ASK["messages"], message.model_dump(exclude_none=True), *results]}).choices[0]
    assert answer.message.content == "It rains." and answer.message.tool_calls is None and answer.finish_reason == "stop"
    text = server[0].tokenizer.decode(prompts[-1], skip_special_tokens=False)
    assert text.endswith(f"<|im_start|>assistant\n<think></think>\n{CALLS}\n<|im_end|>\n<|im_start|>user\n<tool_response>\nwet\n</tool_response>\n<tool_response>\ndone\n</tool_response>\n"
                         "<|im_end|>\n<|im_start|>assistant\n<think></think>")


@pytest.mark.parametrize("said, content", [
    ("<tool_call>\n<function=unknown>\n</function>\n</tool_call> there", "<tool_call>\n<function=unknown>\n</function>\n</tool_call> there"),
    ("a <tool_ca", "a <tool_ca"), ("ends with space \n", "ends with space \n"), ("<tool_call></tool_call>", "<tool_call></tool_call>"),
])
def test_what_is_no_call_stays_content(server, says, said, content):
    says(said)
    talk = client(server[1]).chat.completions
    asked = ASK | {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    for choice in (talk.create(**asked).choices[0], stream_of(talk, **asked)):
        assert choice.message.content == content and not choice.message.tool_calls and choice.finish_reason == "stop"


def test_arguments_are_streamed_as_they_are_written(server, says):
    """A client sees the name before the arguments, and a string before it ends."""
    says(CALLS)
    talk, asked = client(server[1]).chat.completions, ASK | {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    brought = [call for chunk in talk.create(**asked, stream=True) for call in chunk.choices[0].delta.tool_calls or ()]
    whole = talk.create(**asked).choices[0].message.tool_calls
    assert [(call.index, call.function.name, call.type) for call in brought if call.id] == [(0, "weather", "function"), (1, "stop", "function")]
    for index, call in enumerate(whole):
        own = [piece for piece in brought if piece.index == index]
        assert own[0].function.name == call.function.name and all(piece.function.name is None for piece in own[1:])
        assert "".join(piece.function.arguments for piece in own) == call.function.arguments
    assert sum(piece.index == 0 for piece in brought) > 10  # the toy's tokens are bytes


def test_a_call_cut_off_by_the_token_limit_says_so(server, says):
    says(CALLS)
    talk, asked = client(server[1]).chat.completions, ASK | {"max_tokens": 51, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    for choice in (talk.create(**asked).choices[0], list(talk.create(**asked, stream=True))):
        if isinstance(choice, list):
            pieces = [call.function for chunk in choice for call in chunk.choices[0].delta.tool_calls or ()]
            assert choice[-1].choices[0].finish_reason == "length" and pieces[0].name == "weather"
            assert "".join(piece.arguments for piece in pieces) == '{"city": "Rom'
        else:
            assert choice.finish_reason == "length" and choice.message.tool_calls[0].function.arguments == '{"city": "Rom'


def test_tool_choice_none_shows_no_tools_and_parallel_false_keeps_one_call(server, says):
    prompts = says(CALLS)
    talk, off = client(server[1]).chat.completions, {"chat_template_kwargs": {"enable_thinking": False}}
    none = talk.create(**ASK, tool_choice="none", extra_body=off).choices[0]
    assert none.message.content == CALLS and none.finish_reason == "stop"
    assert prompts[-1] == chat.encode_prompt(server[0].tokenizer, ASK["messages"], enable_thinking=False)
    one = talk.create(**ASK, parallel_tool_calls=False, extra_body=off).choices[0]
    assert [call.function.name for call in one.message.tool_calls] == ["weather"]


@pytest.mark.parametrize("choice, names", [("required", {"weather", "stop"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"})])
def test_a_forced_call_is_made(server, choice, names):
    """By a model that has never seen a tool: the grammar does it."""
    held = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {"days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}, "required": ["days"]}}},
            {"type": "function", "function": {"name": "stop"}}]  # nothing in it is free text, which a model like this would write without end
    made = client(server[1]).chat.completions.create(**ASK | {"tools": held, "n": 4}, tool_choice=choice, seed=1, temperature=1.0)
    for sample in made.choices:
        (call,) = sample.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert sample.finish_reason == "tool_calls" and call.function.name in names and sample.message.content is None
        assert call.function.name == "stop" or (isinstance(arguments["days"], int) and arguments.get("unit", "C") in "CF")


@pytest.mark.parametrize("changes", [
    {"tools": [{"type": "function", "function": {"name": "a b"}}]}, {"tools": [{"type": "other"}]}, {"tools": "weather"}, {"tools": TOOLS * 65}, {"tools": [], "tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "other"}}}, {"tool_choice": "sometimes"}, {"tool_choice": "required", "response_format": {"type": "json_object"}},
    {"tool_choice": "required", "extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "stop", "arguments": "[1]"}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "stop", "arguments": "{"}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "stop", "arguments": '{"a": "\\ud800"}'}}]}]},
])
def test_malformed_tools_are_refused(server, changes):
    with pytest.raises(openai.BadRequestError):
        client(server[1]).chat.completions.create(**ASK | changes)
