"""Training is reproducible, digits stand alone, and web text never yields a special token."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import dataset, problem_rows, web_rows

from model.chat import SPECIAL_TOKENS
from pipelines.errors import UserError
from pipelines.tokenizer import encode, load_tokenizer, tokenizer_digest, train_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    web = dataset(folder, "web", web_rows(200), parts=2)
    return web, train_tokenizer([web], 340, folder, special_tokens=SPECIAL_TOKENS)


def test_the_same_text_gives_the_same_file(trained, tmp_path):
    web, path = trained
    assert train_tokenizer([web], 340, tmp_path / "again.json", special_tokens=SPECIAL_TOKENS).read_bytes() == path.read_bytes()


def test_special_tokens_take_the_first_ids(trained):
    tokenizer = load_tokenizer(trained[1].parent)
    assert [tokenizer.id_to_token(index) for index in range(len(SPECIAL_TOKENS))] == SPECIAL_TOKENS
    assert tokenizer.get_vocab_size() == 340


@settings(max_examples=80, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(["<|im_end|>", "</s>", "<think>", " 12", "3", "é", "\n"])).map("".join))
def test_any_text_comes_back_without_special_ids(trained, text):
    tokenizer = load_tokenizer(trained[1])
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(index >= len(SPECIAL_TOKENS) for index in ids)


def test_special_tokens_are_read_where_allowed(trained):
    tokenizer = load_tokenizer(trained[1])
    assert SPECIAL_TOKENS.index("<|im_end|>") in encode(tokenizer, "a<|im_end|>", allow_special=True)
    assert SPECIAL_TOKENS.index("<|im_end|>") not in encode(tokenizer, "a<|im_end|>")


def test_every_digit_is_its_own_token(trained):
    tokenizer = load_tokenizer(trained[1])
    tokens = [tokenizer.id_to_token(index) for index in encode(tokenizer, "345 birds, 345 12")]
    assert all(len(token) == 1 for token in tokens if any(char.isdigit() for char in token))


def test_the_digest_is_of_the_content(trained, tmp_path):
    tokenizer = load_tokenizer(trained[1])
    compact = tmp_path / "compact.json"
    compact.write_text(json.dumps(json.loads(trained[1].read_text())))
    assert tokenizer_digest(load_tokenizer(compact)) == tokenizer_digest(tokenizer)
    tokenizer.enable_truncation(7)
    assert tokenizer_digest(load_tokenizer(compact)) == tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["zzz"])
    assert tokenizer_digest(load_tokenizer(compact)) != tokenizer_digest(tokenizer)


def test_messages_are_text_too(tmp_path):
    problems = dataset(tmp_path, "problems", problem_rows(40))
    assert "Ġmake" in load_tokenizer(train_tokenizer([problems], 300, tmp_path)).get_vocab()


def test_mistakes_are_told(trained, tmp_path):
    with pytest.raises(UserError, match="16 special tokens and 256 bytes need 272"):
        train_tokenizer([trained[0]], 100, tmp_path, special_tokens=SPECIAL_TOKENS)
    with pytest.raises(UserError, match="no such tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="neither a column 'text' nor"):
        train_tokenizer([dataset(tmp_path, "numbers", [{"id": "a", "n": 1}])], 300, tmp_path)


def test_any_tokenizer_json_is_taken(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers/gpt-neox-dolma")
    text = "The mill grinds <|endoftext|> 345 sacks."
    assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False) == text
    assert tokenizer.token_to_id("<|endoftext|>") not in encode(tokenizer, text)
    assert tokenizer.token_to_id("<|endoftext|>") in encode(tokenizer, text, allow_special=True)
