"""Environments: keyed worlds, the task's own verdict, and a small price for good form."""

import pytest

from generators.tasks import TASKS
from pipelines.errors import UserError
from training.environments import Environment, VerifiableTask
from training.environments.verifiable import well_formed


def judge(world, response, index=3, truncated=False):
    state, _ = world.reset(7, index)
    after, more = world.step(state, response(state.problem), truncated=truncated)
    assert more is None
    return world.verdict(after)


@pytest.mark.parametrize("name", ["addition", "comparison", "counting"])
def test_rewards(name):
    world = VerifiableTask(name)
    assert isinstance(world, Environment)
    right = judge(world, lambda p: f"{p.reasoning}\n</think>\n{p.answer}")
    assert (right.reward, right.ok, right.parts) == (pytest.approx(1.1), True, {"verifier": 1.0, "format": 0.1})
    wrong = judge(world, lambda p: f"{p.reasoning}\n</think>\n{p.answer}7")
    assert (wrong.reward, wrong.ok) == (pytest.approx(0.1), False)
    unclosed = judge(world, lambda p: f"{p.reasoning}\n{p.answer}")
    assert (unclosed.reward, unclosed.ok) == (0.0, False)
    cut = judge(world, lambda p: f"{p.reasoning}\n</think>\n{p.answer}", truncated=True)
    assert (cut.reward, cut.ok) == (0.0, False)


def test_episodes_are_keyed_not_drawn():
    world = VerifiableTask("addition", params={"digits": [2, 2]})
    late = world.reset(7, 5)
    again = VerifiableTask("addition", params={"digits": [2, 2]}).reset(7, 5)
    assert late == again and late != world.reset(7, 6) and late != world.reset(8, 5)
    assert late[1] == TASKS["addition"].with_params({"digits": [2, 2]}).problem(7, 5).prompt_messages()


@pytest.mark.parametrize(("text", "fine"), [
    ("a\n</think>\n4", True), ("<think>\na</think>4", True), ("a", False), ("a</think>", False), ("a</think>b</think>c", False), ("a</think><think>4", False),
])
def test_form(text, fine):
    assert well_formed(text) is fine


def test_mistakes_are_named():
    with pytest.raises(UserError, match="unknown task 'sums'"):
        VerifiableTask("sums")
    with pytest.raises(UserError, match="digit"):
        VerifiableTask("addition", params={"digit": 3})
