"""`gristmill`: the command. One verb a stage, in the order the work goes.

Every verb reads a recipe (`--recipe NAME_OR_FILE`, then `key=value` overrides), shows progress on stderr, ends with one
screen on stdout, and answers a user's mistake with one line and exit code 2. Heavy packages (torch, dask, prefect) are
imported inside the verbs, so that `gristmill --help` answers at once.
"""

import errno
import os
import sys
import traceback

import typer

from flows.commands import data, dedup, demo, flow, inspect, models, shards, synthesis

app = typer.Typer(
    name="gristmill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Web crawl to trained model and back: curate, deduplicate, mix, tokenize, pretrain, post-train, generate verified data, and
trace every token to its page.

Start with `gristmill demo --out runs/first`: the whole job on a few hundred real pages, in minutes, on any laptop.""",
    epilog="Recipes: a name from `recipes/` or a YAML file; `gristmill VERB --recipe-help` lists every key with its default.",
)
for room in (demo, data, dedup, shards, synthesis, models, inspect, flow):
    room.add_to(app)

INTERRUPTED = 130  # 128 + SIGINT, as shells have it; Typer turns Ctrl-C into this code before we see it
OUR_LOWER_FLOORS = ("kernels", "model", "filters")  # they cannot import UserError; their ValueErrors are addressed to users too


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted, else our defect."""
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    code = run(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    from typer._click.exceptions import ClickException, NoArgsIsHelpError

    try:
        code = app(args=arguments, standalone_mode=False, prog_name="gristmill") or 0
        return _interrupted() if code == INTERRUPTED else code
    except NoArgsIsHelpError as help_page:
        print(help_page.format_message())
        return 2
    except ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _mistake(f"{error.format_message()}{hint}")
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as exit_request:
        return _interrupted() if exit_request.exit_code == INTERRUPTED else exit_request.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of a pipe left (`| head`): nothing more to say to it
        return 0
    except Exception as error:
        line = user_mistake(error)
        if line is None:
            traceback.print_exc()
            return 1
        return _mistake(line)


def user_mistake(error: BaseException) -> str | None:
    """The one line to tell if the error is a user's mistake; None if it is a defect of ours (it keeps its traceback)."""
    from pydantic import ValidationError

    from pipelines.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{error.title}: {'.'.join(str(step) for step in first['loc'])}: {first['msg']}"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'no such file').lower()}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the output'}: no space left; free some, and the same command goes on from here"
    if isinstance(error, ValueError) and error.__traceback__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] in OUR_LOWER_FLOORS:
            return str(error)
    return None


def _interrupted() -> int:
    print("gristmill: interrupted; the same command goes on from here", file=sys.stderr)
    return INTERRUPTED


def _mistake(line: str) -> int:
    print(f"gristmill: {' '.join(line.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
