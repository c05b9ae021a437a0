"""The entry of `kith`: the tree of commands, and what becomes of anything that goes wrong in one.

Idea: a command is a plain function that prints or raises. Here every end is turned into an exit code and, where people
need one, into a line that says what to do: a `KithError` never shows a traceback, Ctrl-C says what goes on without us,
a reader that stopped reading is no error. What only shows deep inside a library, text that is no UTF-8 or an output
that takes nothing more, is put into words here, once for all commands.
"""

import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import node
from node.cli import (
    chat,
    config,
    doctor,
    installing,
    inviting,
    jobs,
    keys,
    knowledge,
    membership,
    models,
    nodes,
    output,
    service,
)
from node.errors import ExitCode, KithError

#: `kith COMMAND` in a remedy that means the node which was asked, on this machine.
_OF_THE_NODE = re.compile(
    r"\bkith (?=(?:cancel|down|explain|init|jobs|join|leave|logs|nodes|promote|result|service|status|story|up|watch)\b"
    r"(?!`? there))"
)
#: Of a disk that takes nothing: code, words, remedy.
_DISK = {
    errno.ENOSPC: ("disk-full", "the disk is full", "Make room, then try again."),
    errno.EDQUOT: ("disk-full", "your part of the disk is used up", "Make room, then try again."),
    errno.EFBIG: ("not-written", "a file may grow no further", "Raise the limit (ulimit -f), or write elsewhere."),
    errno.EROFS: ("disk-failed", "the disk can only be read", "Mount it for writing, then try again."),
    errno.EIO: ("disk-failed", "the disk does not read or write", "Check it, then try again."),
}

app = typer.Typer(
    name="kith",
    help="The machines in a room as one team of LLM agents.",
    epilog="Start with: kith up. Then, in a second terminal: kith submit summarize FILE.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kith {node.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", envvar="KITH_DATA_DIR", metavar="DIR", help="The node that the command means."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    from node.paths import default_data_dir, expanded

    ctx.obj = (default_data_dir() if data_dir is None else expanded(data_dir)).absolute()


for _module in (service, installing, config, membership, inviting, nodes, jobs, chat, knowledge, keys, models, doctor):
    _module.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Prints, never raises an operating error."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    # gRPC's core writes lines of its own to standard error ("Failed to add port"); what matters is said in our words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _prepare_streams()
    try:
        code = _run(list(arguments), as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has read enough (`kith jobs | head`)
        _write_no_more()
        return ExitCode.OK
    except OSError as error:  # nothing can be written to standard output, an error as JSON neither
        _write_no_more()
        problem = _known(error) or _not_written(error)
        output.emit_error(problem, as_json=False)
        return problem.exit_code


def _prepare_streams() -> None:
    """Streams that a shell closed (`>&-`) are there and empty; letters that do not fit are no traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?"
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # as in arguments; `_known` says what was wrong


def _write_no_more() -> None:
    """What is left in the buffer must not fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], as_json: bool) -> int:
    try:
        ended = app(args=arguments, prog_name="kith", standalone_mode=False)
        if ended != ExitCode.INTERRUPTED:
            return int(ended or 0)
        error = _interrupted()
    except KithError as problem:
        error = problem
    except KeyboardInterrupt:
        error = _interrupted()
    except typer.Abort:
        error = KithError("interrupted", "the input ended", "", ExitCode.INTERRUPTED)
    except typer.TyperException as wrong:
        message = wrong.format_message()
        if message.startswith("Usage:"):  # a group without a command: the message is its help
            print(message)
            return ExitCode.USAGE
        command = " ".join(["kith", *_command_words(arguments), "--help"])
        error = KithError("usage", message[0].lower() + message[1:], command, ExitCode.USAGE)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer's answer to a reader that left
            raise BrokenPipeError from None
        raise
    except BrokenPipeError:
        raise
    except Exception as bug:
        known = _known(bug)
        if known is None and os.environ.get("KITH_DEBUG"):
            raise
        error = known or KithError(
            "internal",
            f"an error that should not happen: {type(bug).__name__}: {bug}",
            f"the traceback: KITH_DEBUG=1 kith …; the node's log: {_log_path(arguments)}",
        )
    if (folder := _data_dir_given(arguments)) is not None:
        at = f"kith --data-dir {shlex.quote(str(folder))} "
        error.remedy = _OF_THE_NODE.sub(lambda _: at, error.remedy)
    output.emit_error(error, as_json)
    return error.exit_code


def _known(bug: Exception) -> KithError | None:
    """What a person did or met that only a library noticed. Any command may be the one that finds a disk full."""
    if isinstance(bug, UnicodeEncodeError) and any("\udc80" <= letter <= "\udcff" for letter in bug.object):
        text = bug.object[max(0, bug.start - 20) : bug.end + 20]
        remedy = "Convert it, as in: iconv -f LATIN1 -t UTF-8 FILE | kith …"
        return KithError("bad-request", f"this is not UTF-8: {output.one_line(text)!r}", remedy, ExitCode.BAD_INPUT)
    if isinstance(bug, OSError) and bug.errno in _DISK:
        code, words, remedy = _DISK[bug.errno]
        return KithError(code, words + (f": {bug.filename}" if bug.filename else ""), remedy)
    return None


def _not_written(error: OSError) -> KithError:
    why = error.strerror or str(error)
    return KithError("not-written", f"it could not be written: {why}", "Make room on that disk, or write elsewhere.")


def _interrupted() -> KithError:
    return KithError("interrupted", "interrupted", "", ExitCode.INTERRUPTED)


def _command_words(arguments: Sequence[str]) -> list[str]:
    """The names of the command in `arguments`, as far as they are known."""
    words: list[str] = []
    commands = {tuple(name.split()) for name in command_names()}
    for argument in arguments:
        if any(name[: len(words) + 1] == (*words, argument) for name in commands):
            words.append(argument)
    return words


def command_names() -> list[str]:
    """Every command, as typed after `kith`."""
    names = [str(one.name) for one in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names += [f"{group.name} {one.name}" for one in group.typer_instance.registered_commands]
    return names


def _data_dir_given(arguments: Sequence[str]) -> Path | None:
    """As it was typed."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--data-dir":
            return Path(following)
        if word.startswith("--data-dir="):
            return Path(word.removeprefix("--data-dir="))
    return None


def _log_path(arguments: Sequence[str]) -> Path:
    from node.paths import NodePaths, default_data_dir

    return NodePaths(_data_dir_given(arguments) or default_data_dir()).log


def main() -> None:
    """The command `kith`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
