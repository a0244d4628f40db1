"""The leak check reads what the model wrote: held-out questions and text are found there in any dress, other problems are not."""

from types import SimpleNamespace

import numpy as np
from row_datasets import dataset

from flows.leak_check import written
from pipelines.decontaminate import DecontaminateRecipe
from pipelines.progress import silent


def test_planted_leaks_in_generated_data_are_found(tmp_path):
    draw = np.random.default_rng(0)
    held_text = " ".join("".join(draw.choice(list("abcdefgh"), 5)) for _ in range(200))
    questions = ["What is 12 + 34?", "Ann has 3 pens and buys 4 more. How many has she?", "How many times does g appear in: g g b"]
    dataset(tmp_path / "heldout/problems", [{"id": str(n), "question": question} for n, question in enumerate(questions)])
    dataset(tmp_path / "heldout/text", [{"id": "t", "text": held_text}])
    wrote = [
        "What is 12 - 34? It is -22.",
        "What is 12 + 345? 357",
        "How many times does g appear in: g g b b",
        "WHAT IS\n12 + 34? Let me see: 46",
        "First, a riddle: ann has 3 pens; and buys 4 more: HOW many has she? 7",
        f"As I recall: {held_text.upper()[:400]}",
        "Nothing of the kind.",
    ]
    dataset(tmp_path / "generated", [{"id": str(n), "text": text} for n, text in enumerate(wrote)])
    run = SimpleNamespace(
        uri=lambda place: str(tmp_path / place), recipe=SimpleNamespace(leaks=DecontaminateRecipe(coverage=0.1)), cluster=None, progress=silent
    )
    problems, text = written(run, "problems"), written(run, "text")
    assert (problems["size"], problems["documents"], problems["overlapping"], problems["remaining"]) == (3, 7, 2, 2)
    assert (text["size"], text["overlapping"], text["remaining"]) == (1, 1, 1)
