"""Datasets of problems: every candidate accounted for, no question twice, none of the held-out ones, whatever the parts."""
import pytest

from generators.documents import SYNTHETIC_SCHEMA
from generators.problems import PROBLEMS, ProblemsRecipe
from generators.tasks import TASKS
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import load_recipe
from pipelines.stage import run_stage


def recipe(**changes) -> ProblemsRecipe:
    return load_recipe(ProblemsRecipe, {"tasks": [{"name": "addition", "count": 300, "params": {"digits": [1, 1]}}, {"name": "counting", "count": 80}],
                                        "seed": 1, **changes})


def test_kept_questions_are_distinct_and_right(tmp_path):
    made = run_stage(PROBLEMS, [], recipe(), str(tmp_path / "p"))
    rows = made.scan().collect()
    assert made.rows_in == 380 == made.rows + made.rejected_rows
    assert made.rows == rows["id"].n_unique() == rows["question"].n_unique()
    assert set(made.reasons) == {"duplicate.question"} and 50 < rows.filter(task="addition").height <= 100  # 100 sums of two digits exist
    for row in rows.to_dicts():
        assert set(SYNTHETIC_SCHEMA.names) == set(row)
        problem = TASKS[row["task"]].with_params({"digits": (1, 1)} if row["task"] == "addition" else {}).problem(1, row["sampling"]["sample"])
        assert (row["id"], row["question"], row["answer"], row["messages"]) == (problem.id, problem.question, problem.answer, problem.messages())
        assert row["verified"] and row["parents"] == [] and row["generator"] == f"generators.tasks.{row['task']}@1"
    rejected = made.scan_rejected().collect()
    assert rejected["id"].n_unique() == rejected.height and not set(rejected["id"]) & set(rows["id"])


def test_parts_do_not_change_what_is_kept(tmp_path):
    kept = []
    for parts in (1, 3):
        made = run_stage(PROBLEMS, [], recipe(parts_per_task=parts), str(tmp_path / str(parts)))
        assert len(made.meta["parts"]) == 2 * parts and made.rows_in == 380
        kept.append(sorted(made.scan(["id", "text"]).collect().rows()))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("as_input", [True, False])
def test_held_out_questions_are_rejected(tmp_path, as_input):
    held = str(tmp_path / "held")
    run_stage(PROBLEMS, [], recipe(seed=2, tasks=[{"name": "addition", "count": 40, "params": {"digits": [1, 1]}}]), held)
    made = run_stage(PROBLEMS, [held] if as_input else [], recipe() if as_input else recipe(exclude_ids_from=held), str(tmp_path / "p"))
    leaked = set(Dataset.open(held).scan(["id"]).collect()["id"])
    assert not leaked & set(made.scan(["id"]).collect()["id"])
    assert made.reasons["heldout.leak"] > 0 and made.rows_in == 380


def test_same_recipe_same_bytes(tmp_path):
    one, two = (run_stage(PROBLEMS, [], recipe(), str(tmp_path / name)) for name in "ab")
    assert one.digest == two.digest
    assert run_stage(PROBLEMS, [], recipe(seed=5), str(tmp_path / "c")).digest != one.digest


def test_counts_by_weight(tmp_path):
    shares = [{"name": "addition", "weight": 3}, {"name": "counting", "weight": 1}, {"name": "sequences", "count": 20}]
    payloads = PROBLEMS.plan([], recipe(tasks=shares, count=100))
    assert [p["count"] for p in payloads] == [60, 20, 20]


@pytest.mark.parametrize("changes,message", [
    ({"tasks": [{"name": "adition", "count": 5}]}, "no task 'adition'"),
    ({"tasks": [{"name": "addition", "count": 5, "params": {"digit": 2}}]}, "no parameter 'digit'"),
    ({"tasks": [{"name": "addition"}]}, "give `count`"),
    ({"tasks": [{"name": "addition", "count": 2}] * 2}, "listed twice"),
    ({"exclude_ids_from": "nowhere"}, "no dataset"),
    ({"sed": 1}, "did you mean seed"),
])
def test_mistakes_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run_stage(PROBLEMS, [], recipe(**changes), str(tmp_path / "p"))
    assert "\n" not in str(error.value)
