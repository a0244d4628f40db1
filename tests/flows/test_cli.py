"""The command teaches, answers quickly, and tells a user's mistake in one line."""

import json
import subprocess
import sys

import pytest
import typer.main

from flows import cli
from pipelines.errors import UserError

VERBS = {
    "demo", "curate", "select", "compare-recipes", "dedup", "dedup-spans", "dedup-semantic", "decontaminate", "bucket", "train-classifier", "tokenizer", "mix", "tokenize", "shards", "problems", "generate",
    "pretrain", "sft", "rl", "eval", "serve", "why", "trace", "report", "forget", "card", "flow",
}  # fmt: skip


def leaves(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


ALL = list(leaves(typer.main.get_command(cli.app)))


def test_every_verb_of_the_design_is_there():
    assert {path[0] for path, _ in ALL} == VERBS


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids="-".join)
def test_help_of_every_verb_shows_an_example(path, capsys):
    assert cli.run([*path, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"gristmill {' '.join(path)}" in shown
    assert "Example" in shown or path == ("flow", "list")


def test_help_loads_nothing_heavy(gristmill, environment):
    """What makes `--help` answer at once."""
    done = gristmill("--help")
    assert done.returncode == 0 and "demo" in done.stdout
    heavy = subprocess.run(
        [sys.executable, "-c", "import sys, flows.cli; print({'torch', 'dask', 'prefect', 'polars'} & set(sys.modules))"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert heavy.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "line, said",
    [
        (["nope"], "No such command"),
        (["curate"], "Missing argument"),
        (["dedup", "missing-dataset", "--out", "OUT"], "no dataset here"),
        (["curate", "missing/*.warc.gz", "--out", "OUT"], "no file matches"),
        (["curate", "missing.warc.gz", "--out", "OUT"], "no such file"),
        (["curate", "missing.warc.gz", "--out", "OUT", "familys=[c4]"], "did you mean families"),
        (["curate", "missing.warc.gz", "--out", "OUT", "--recipe", "finweb"], "did you mean fineweb"),
        (["curate", "missing.warc.gz", "--out", "OUT", "--scheduler", "tcp://127.0.0.1:1"], ""),
        (["dedup", "a", "--out", "OUT", "--workers", "-1"], "Invalid value"),
        (["report", "missing-run"], "no run here"),
        (["why", "http://x/", "missing-run"], "neither a dataset nor a run"),
        (["flow", "run", "curatoin", "--out", "OUT"], "did you mean curation"),
        (["flow", "deploy", "demo"], "PREFECT_API_URL"),
        (["shards", "verify", "missing"], "no token shards here"),
        (["mix", "missing.yaml", "--tokenizer", "missing"], "no recipe missing.yaml"),
        (["forget", "missing", "--out", "OUT"], "forget what?"),
        (["problems", "--out", "OUT", "count=3", "tasks=[{name: additoin}]"], "additoin"),
        (["demo", "--out", "OUT", "stray"], "unexpected argument 'stray'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(line, said, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert cli.run([part.replace("OUT", str(tmp_path / "out")) for part in line]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and told.err.startswith("gristmill: ")
    assert said in told.err
    assert "Traceback" not in told.err and not told.out


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.run(["demo", "--out", str(tmp_path), "--recipe", "demo-smoke", "--no-prefect"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_interruption_is_exit_code_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.card.card", interrupted)
    assert cli.run(["card", "anything"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_our_own_defects_keep_their_traceback(monkeypatch, capsys):
    def broken(*_, **__):
        raise AssertionError("rows do not add up")

    monkeypatch.setattr("pipelines.card.card", broken)
    assert cli.run(["card", "anything"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line():
    with pytest.raises(OSError) as full, open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert "no space left; free some, and the same command goes on" in cli.user_mistake(full.value)


def test_value_errors_of_the_lower_floors_are_addressed_to_users():
    from model.chat import segments

    with pytest.raises(ValueError) as caught:
        segments([{"role": "wizard", "content": ""}])
    assert "role must be" in cli.user_mistake(caught.value)
    assert cli.user_mistake(ValueError("a defect")) is None
    assert cli.user_mistake(UserError("yours")) == "yours"


def test_curate_and_dedup_end_with_their_figures(pages, tmp_path, capsys):
    curated, deduped = str(tmp_path / "curated"), str(tmp_path / "deduped")
    recipe = ["families=[language, gopher_quality]", "--workers", "0"]
    assert cli.run(["curate", str(pages), "--out", curated, "--json", *recipe]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["rows_in"] == 42 == result["rows"] + result["rejected_rows"]
    assert sum(result["reasons"].values()) == result["rejected_rows"] > 0
    assert "curate: " in told.err  # progress, in lines, where there is no terminal

    assert cli.run(["dedup", curated, "--out", deduped, "--workers", "0", "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out == "" and told.err == ""
    assert cli.run(["dedup", curated, "--out", deduped, "--workers", "0"]) == 0  # the same line again: finished before
    assert "exact.text" in capsys.readouterr().out

    assert cli.run(["why", str(pages / "page99.html"), deduped]) == 0
    assert cli.run(["why", str(pages / "short.html"), curated, "--json"]) == 0
    fate = json.loads(capsys.readouterr().out.splitlines()[-1])[0]
    assert fate["kept"] is False and fate["decisions"]

    assert cli.run(["curate", str(pages), "--out", curated, "--workers", "0"]) == 2  # another recipe, same folder
    assert "output folder of another run" in capsys.readouterr().err


def test_recipe_help_is_made_from_the_model(capsys):
    assert cli.run(["dedup", "--recipe-help"]) == 0
    assert "exact.url" in capsys.readouterr().out
