"""Steps: files are the truth, sittings add up, a folder belongs to one run."""

import json

import pytest

from flows.fitting import LEAST_SEQUENCES, SPARE, fit_weights
from flows.heldout import HOLDOUT, HoldoutRecipe, position
from flows.steps import Group, Job, Run, Step, claim_folder, run_plainly, timings, write_json
from pipelines.errors import UserError
from pipelines.progress import ProgressEvent
from pipelines.recipe import Recipe


class Nothing(Recipe):
    pass


def job(calls, fail=()):
    def step(name):
        def work(run):
            calls.append(name)
            run.progress(ProgressEvent("inner", 1, 2, "things"))
            if name in fail:
                raise RuntimeError(name)
            write_json(run.path(name, "done.json"), {})
            return {"made": name}

        return Step(name=name, run=work, done=lambda run: run.path(name, "done.json").is_file())

    groups = [Group(name="one", steps=(step("a"), step("b"))), Group(name="two", steps=(step("c"),))]
    return Job(name="toy", about="", recipe=Nothing, identity=lambda recipe: {}, groups=lambda recipe: groups, tables=lambda folder: {})


def test_a_finished_step_is_not_redone_and_sittings_add_up(tmp_path):
    calls, events = [], []
    with pytest.raises(RuntimeError, match="b"):
        run_plainly(job(calls, fail={"b"}), Run(tmp_path, Nothing(), 0))
    run_plainly(job(calls), Run(tmp_path, Nothing(), 0, tell=events.append))
    assert calls == ["a", "b", "b", "c"]
    told = timings(tmp_path)
    assert [(name, entry["sittings"], entry["finished"]) for name, entry in told.items()] == [("a", 1, True), ("b", 2, True), ("c", 1, True)]
    assert told["c"]["figures"] == {"made": "c"} and told["c"]["peak_bytes"] > 1_000_000
    assert ProgressEvent("b · inner", 1, 2, "things") in events
    assert ProgressEvent("a", 1, 1, "step", "done before") in events


def test_a_killed_sitting_counts_up_to_its_last_heartbeat(tmp_path):
    lines = [
        {"step": "a", "begun": True},
        {"step": "a", "finished": False, "seconds": 5.0, "peak_bytes": 7},
        {"step": "a", "finished": False, "seconds": 10.0, "peak_bytes": 9},
        {"step": "a", "begun": True},
        {"step": "a", "finished": False, "seconds": 5.0, "peak_bytes": 3},
        {"step": "a", "finished": True, "seconds": 6.0, "peak_bytes": 3, "figures": {}},
        {"step": "b", "begun": True},
        {"step": "b", "finished": False, "seconds": 5.0, "peak_bytes": 1},
    ]
    (tmp_path / "timings.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": "b", "fin')
    told = timings(tmp_path)
    assert told["a"] == {"seconds": 16.0, "peak_bytes": 9, "sittings": 2, "finished": True, "figures": {}}
    assert told["b"]["seconds"] == 5.0 and not told["b"]["finished"]


def test_a_folder_belongs_to_one_run(tmp_path):
    claim_folder(tmp_path / "run", {"seed": 1, "crawl": "x"})
    claim_folder(tmp_path / "run", {"seed": 1, "crawl": "x"})
    with pytest.raises(UserError, match="output folder of another run: differs in seed: 1 there, 2 here"):
        claim_folder(tmp_path / "run", {"seed": 2, "crawl": "x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        claim_folder(tmp_path / "file", {})


def test_weights_are_fitted_to_what_there_is():
    supply = {"text": 10_000, "problems": 1_000_000, "generated": 50}
    fitted = fit_weights({"text": 1, "problems": 1, "generated": 2}, supply, 100_000, 64)
    assert fitted == {"text": int(SPARE * 10_000), "problems": 100_000 - int(SPARE * 10_000)}  # too few generated: left out
    assert fit_weights({"text": 1, "problems": 3}, {"text": 10**9, "problems": 10**9}, 1000, 4) == {"text": 250, "problems": 750}
    assert sum(fit_weights({"text": 1, "problems": 1}, {"text": 2000, "problems": 2000}, 10**6, 64).values()) == 2 * int(SPARE * 2000)
    assert fit_weights({"text": 1}, {"text": LEAST_SEQUENCES * 64 - 1}, 10**6, 64) == {}


def test_held_out_is_a_hash_of_the_id_and_never_nothing(tmp_path, pages):
    from flows.cli import run
    from pipelines.dataset import Dataset
    from pipelines.stage import run_stage

    curated = str(tmp_path / "curated")
    assert run(["curate", str(pages), "--out", curated, "--workers", "0", "--quiet", "families=[language, gopher_quality]"]) == 0
    for fraction in (0.3, 1e-9):
        sides = [
            run_stage(HOLDOUT, [curated], HoldoutRecipe(side=side, fraction=fraction), str(tmp_path / f"{side}-{fraction}")) for side in ("train", "heldout")
        ]
        ids = [set(side.scan(["id"]).collect()["id"]) for side in sides]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == set(Dataset.open(curated).scan(["id"]).collect()["id"])
        assert all(side.rows + side.rejected_rows == side.rows_in for side in sides)
        if fraction == 0.3:
            assert ids[1] == {name for name in ids[0] | ids[1] if position(name, 0) < 0.3} and len(ids[1]) > 3
        else:
            assert ids[1] == {min(ids[0] | ids[1], key=lambda name: position(name, 0))}
