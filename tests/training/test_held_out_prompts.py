"""Reinforcement learning never asks a held-out question, and still asks the same question for the same episode."""

import pytest

from pipelines.errors import UserError
from training.environments.verifiable import VerifiableTask

SMALL = {"digits": [1, 1]}  # a hundred questions: collisions are certain


def asked(place, count=300):
    return [place.reset(0, index)[0].problem.id for index in range(count)]


def test_held_out_questions_are_drawn_again():
    free = asked(VerifiableTask("addition", params=SMALL))
    held_out = frozenset(free[:20])
    guarded = asked(VerifiableTask("addition", params=SMALL, exclude=held_out))
    assert not held_out & set(guarded)
    assert guarded == asked(VerifiableTask("addition", params=SMALL, exclude=held_out))
    assert [name for name, other in zip(guarded, free) if other not in held_out] == [other for other in free if other not in held_out]


def test_a_task_that_is_held_out_whole_is_refused():
    place = VerifiableTask("addition", params=SMALL, exclude=frozenset(asked(VerifiableTask("addition", params=SMALL), 5000)))
    with pytest.raises(UserError, match="held-out"):
        place.reset(0, 0)
