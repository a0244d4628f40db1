"""Recipes refuse what they do not know, and say it in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.recipe import Recipe, digest_of, load_recipe


class Optimizer(Recipe):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


class Training(Recipe):
    steps: int = 10
    optimizer: Optimizer = Optimizer()


class Named(Recipe):
    dataset: str


def test_file_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 3\noptimizer: {lr: 0.5}\n")
    recipe = load_recipe(Training, path, ["optimizer.lr=3e-3", "steps=7"])
    assert (recipe.steps, recipe.optimizer.lr) == (7, 3e-3)
    assert load_recipe(Training, None).steps == 10


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ({"stepz": 1}, [], "unknown key stepz; did you mean steps"),
        ({"optimizer": {"beta": 1}}, [], r"unknown key optimizer.beta; did you mean betas"),
        ({"steps": "many"}, [], "steps: Input should be a valid integer"),
        (None, ["steps"], "not of the form key=value"),
        ("no-such-recipe.yaml", [], "no recipe no-such-recipe.yaml"),
    ],
)
def test_mistakes_are_one_clear_line(source, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(Training, source, overrides)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_hostile_yaml_never_escapes(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        load_recipe(Training, path)
    except UserError:
        pass


def test_a_misspelt_key_is_named_before_the_one_it_leaves_out():
    with pytest.raises(UserError, match="unknown key datset; did you mean dataset"):
        load_recipe(Named, {"datset": "here"})


def test_digest_is_of_the_content():
    assert digest_of(Training(steps=4)) == digest_of(load_recipe(Training, {"steps": 4}))
    assert digest_of(Training(steps=4)) != digest_of(Training(steps=5))
