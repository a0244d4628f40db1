"""Structured output is always valid, greedy or sampled, beside free text, with and without guesses."""
import json
import re

import pytest
from engine_oracle import prompts, small_lm

from model.engine import Engine, SamplingParams

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                                           "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
          "required": ["name", "age"], "additionalProperties": False}


@pytest.mark.parametrize("guesses", [0, 2])
def test_samples_match_their_grammar(tokenizer, guesses):
    lm = small_lm(mtp_depth=2, mtp_pattern="*E")
    free = SamplingParams(seed=5, max_tokens=20)
    each = [SamplingParams(n=4, seed=1, regex=r"(yes|no), [0-9]{2,4}!", max_tokens=40), SamplingParams(n=3, seed=2, json_schema=SCHEMA, max_tokens=110),
            SamplingParams(temperature=0, regex="[ab]{3}c", max_tokens=20), SamplingParams(seed=4, temperature=1.5, top_k=3, json_schema=json.dumps(SCHEMA),
                                                                                          max_tokens=110), free]
    given = prompts(5, seed=3)
    engine = Engine(lm, tokenizer, max_slots=4, max_length=160, guesses=guesses, always_guess=True)
    outputs = engine.generate(given, each)
    assert all(o.finish_reason == "stop" for output in outputs[:4] for o in output.outputs)
    assert all(re.fullmatch(r"(yes|no), [0-9]{2,4}!", o.text) for o in outputs[0].outputs)
    assert re.fullmatch("[ab]{3}c", outputs[2].outputs[0].text)
    for o in (*outputs[1].outputs, *outputs[3].outputs):
        value = json.loads(o.text)
        assert set(value) <= {"name", "age", "tags"} and isinstance(value["name"], str) and 0 <= value["age"] <= 150 and len(value.get("tags", [])) <= 3
    assert outputs[4].outputs[0].token_ids == Engine(lm, tokenizer, max_length=160).generate([given[4]], free)[0].outputs[0].token_ids


@pytest.mark.parametrize("text", ["a </think> b", "<|im_end|>", "</s></s>"])
def test_text_that_spells_a_special_token_is_text(lm, tokenizer, text):
    for how in ({"regex": re.escape(text)}, {"json_schema": {"const": text}}):
        output = Engine(lm, tokenizer, max_slots=2, max_length=64).generate([[20]], SamplingParams(temperature=0, max_tokens=40, **how))[0].outputs[0]
        assert text in output.text and output.finish_reason == "stop" and not set(output.token_ids[:-1]) & set(range(16))


HUGE = "a" + "".join(f"(?:p{i}(?:[^<\n][^\n]*|)(?:\n(?:[^<\n][^\n]*|))*)?" for i in range(2000))


def test_a_grammar_that_outgrows_the_library_ends_its_own_sample(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    each = [SamplingParams(regex="b" + HUGE, temperature=0, max_tokens=9), SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)]
    grown, free = engine.generate([[20], [20]], each)
    assert grown.outputs[0].text == "ba" and grown.outputs[0].finish_reason == "stop" and len(free.outputs[0].token_ids) == 9


@pytest.mark.parametrize("bad", [{"regex": "(["}, {"json_schema": {"type": "nonsense"}}, {"json_schema": "{"}, {"regex": HUGE}])
def test_malformed_grammars_are_refused_with_a_line(lm, tokenizer, bad):
    with pytest.raises(ValueError, match="regex|json_schema") as told:
        Engine(lm, tokenizer, max_length=64).generate([[20]], SamplingParams(**bad))
    assert "\n" not in str(told.value)


def test_one_grammar_a_sample():
    with pytest.raises(ValueError, match="not both"):
        SamplingParams(regex="a", json_schema={})
