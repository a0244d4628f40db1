"""The figures that say whether what the models are measured with was also what they were trained on."""

import json
from typing import Any

import polars as pl

from flows.heldout import found_in
from flows.steps import Run, write_json
from pipelines.dataset import Dataset


def check_leaks(run: Run) -> dict[str, Any]:
    """Count held-out documents and questions in everything that was trained on; writes heldout/leaks.json."""
    held_text, held = Dataset.open(run.uri("heldout/text")), Dataset.open(run.uri("heldout/problems"))
    asked = set(held.scan(["id"]).collect()["id"])
    rows = [_text(run, held_text)]
    for place in ("problems", "questions"):
        rows.append(_problems(run, place, asked))
    rows.append(_generated(run, asked))
    rows += [written(run, kind) for kind in ("problems", "text")]
    rows.append(_rollouts(run, asked))
    leaked = sum(row["remaining"] for row in rows)
    recipe = run.recipe.leaks
    note = (
        f"Text: documents that hold at least {recipe.coverage:.0%} of a held-out document's {recipe.n}-grams were dropped before the mixture was made. "
        f"Problems: questions are compared whole, by id, and looked for in what the model wrote. {leaked:,} held-out items remain in anything trained on."
    )
    write_json(run.path("heldout", "leaks.json"), {"note": note, "rows": rows, "remaining": leaked})
    return {"held-out items remaining in training data": leaked}


def _row(heldout: str, size: int, against: str, documents: int, overlapping: int, action: str, remaining: int = 0) -> dict[str, Any]:
    return {"heldout": heldout, "size": size, "against": against, "documents": documents, "overlapping": overlapping, "action": action, "remaining": remaining}


def _text(run: Run, held: Dataset) -> dict[str, Any]:
    clean = Dataset.open(run.uri("text"))
    same = len(set(clean.scan(["id"]).collect()["id"]) & set(held.scan(["id"]).collect()["id"]))
    return _row("text", held.rows, "training text", clean.rows_in, clean.rejected_rows, "dropped from training", same)


def _problems(run: Run, place: str, asked: set[str]) -> dict[str, Any]:
    made = Dataset.open(run.uri(place))
    dropped = made.reasons.get("heldout.leak", 0)
    remaining = len(asked & set(made.scan(["id"]).collect()["id"]))
    name = {"problems": "training problems", "questions": "questions for generation"}[place]
    return _row("problems", len(asked), name, made.rows_in, dropped, "dropped from training", remaining)


def _generated(run: Run, asked: set[str]) -> dict[str, Any]:
    made = Dataset.open(run.uri("generated"))
    parents = set(made.scan(["parents"]).select(pl.col("parents").explode()).collect()["parents"]) if made.rows else set()
    return _row("problems", len(asked), "accepted generations", made.rows, len(asked & parents), "by their questions", len(asked & parents))


def written(run: Run, kind: str) -> dict[str, Any]:
    """Held-out problems or text in the wording of what the model wrote, whoever asked: RUN/heldout/written-<kind> holds what was found."""
    held, made = Dataset.open(run.uri(f"heldout/{kind}")), Dataset.open(run.uri("generated"))
    found = found_in(made, held, kind, run).rejected_rows if made.rows else 0
    return _row(kind, held.rows, "accepted generations", made.rows, found, "by their wording", found)


def _rollouts(run: Run, asked: set[str]) -> dict[str, Any]:
    """RL draws its questions as it goes, environments in turn; which ones is a function of the recipe and the held-out set."""
    from training.environments.verifiable import VerifiableTask

    recipe = run.recipe.rl
    places = [VerifiableTask(entry.task, params=entry.params, exclude=frozenset(asked)) for entry in recipe.environments]
    steps = json.loads(run.path("rl", "done.json").read_text(encoding="utf-8"))["steps"]
    turns = [(places[index % len(places)], index) for index in range(steps * recipe.prompts)]
    first = sum(place.task.problem(recipe.seed, index).id in asked for place, index in turns)
    remaining = sum(place.reset(recipe.seed, index)[0].problem.id in asked for place, index in turns)
    return _row("problems", len(asked), "RL prompts", len(turns), first, "drawn again", remaining)
