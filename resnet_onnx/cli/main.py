"""The entry point: finds the command, and turns every ending into an exit code and one message."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import shell_complete

from resnet_onnx.cli.guard import INTERRUPTED, end_descendants, work_in_child
from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.version import __version__
from runtimes.doing import ended
from runtimes.errors import (
    FileProblem,
    NoTemporaryFolder,
    OutOfMemory,
    RewritingFailed,
    ToolkitError,
    is_out_of_memory,
    reason,
)
from runtimes.files import write_fix

COMMANDS = (
    "demo",
    "optimize",
    "models",
    "train",
    "evaluate",
    "export",
    "convert",
    "build",
    "parity",
    "bench",
    "compare",
    "report",
    "reproduce",
    "predict",
    "bundle",
    "verify",
    "doctor",
)  # fmt: skip
INTERNAL_ERROR = 70
_COMPLETE = "_RESNET_ONNX_COMPLETE"
"""By which a shell asks what a line could go on with (click, "Shell Completion")."""
_RESUME = ("train", "reproduce")
"""Commands that go on with --resume where they were interrupted."""
WORK_HERE = ("train", "reproduce", "demo")
"""Commands that open no graph but their own and, interrupted, first save what they have: they need no guard."""


class Commands(click.Group):
    """Loads a command's file when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads the command, or returns None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"resnet_onnx.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that `args` begin with; for a misspelt one the message names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{_usage_message(error)}: did you mean {near[0]}?", ctx) from error


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: resnet-onnx demo",
)  # fmt: skip
@click.version_option(__version__, prog_name="resnet-onnx")
def cli() -> None:
    """Take a ResNet to the fastest engine that still computes the same function, with the evidence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code (see ``runtimes.errors`` for the codes)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminal = _terminal(arguments)
    if instruction := os.environ.get(_COMPLETE):  # a shell asks, not a person
        return shell_complete(cli, {}, "resnet-onnx", _COMPLETE, instruction)
    if not arguments:
        arguments = ["--help"]
    asks = {"-h", "--help", "--version"}.intersection(arguments)  # click takes the list apart
    try:
        with cli.make_context("resnet-onnx", arguments, obj=terminal) as context:
            return _run(context, terminal)
    except BrokenPipeError as error:
        if not asks:
            return _internal_error(error, terminal)
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever reads the help has seen enough
        return 0
    except click.exceptions.Exit as ending:
        return int(ending.exit_code)
    except click.UsageError as error:
        # torchrun gives all its processes the same command line: what is wrong with it is said once.
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
            terminal.error("usage", _usage_message(error), _usage_fix(error, arguments))
        return 2
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED


def _terminal(arguments: Sequence[str]) -> Terminal:
    """Returns the terminal of a command line that is not parsed yet."""
    return Terminal(as_json="--json" in arguments, quiet="--quiet" in arguments, verbose="--verbose" in arguments)


def _run(context: click.Context, terminal: Terminal) -> int:
    try:
        cli.invoke(context)
    except (click.UsageError, click.exceptions.Exit, BrokenPipeError):
        raise
    except (KeyboardInterrupt, click.Abort):
        if not terminal.mute:
            resumes = context.invoked_subcommand in _RESUME
            fix = "go on from it: the same command with --resume" if resumes else None
            terminal.error("interrupted", "interrupted; what was complete is kept", fix)
        return INTERRUPTED
    except RewritingFailed as error:
        return _internal_error(error, terminal)
    except ToolkitError as error:
        if not (terminal.mute and error.common):
            terminal.error(error.kind, error.message, error.fix)
        return error.exit_code
    except Exception as error:  # the last line of defence: an internal error, or what the system says through a library
        told = _machine_problem(error)
        if told is None:
            return _internal_error(error, terminal)
        terminal.error(told.kind, told.message, told.fix)
        return told.exit_code
    return 0


def _machine_problem(error: BaseException) -> ToolkitError | None:
    """Returns what the system refused, where an error came of that; None for an internal error."""
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):  # torch has no class of its own
        return OutOfMemory("this machine has not enough memory for that", fix="use a smaller batch or model")
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, FileNotFoundError) and "No usable temporary directory" in text:
            return NoTemporaryFolder(
                "this machine has no folder for temporary files that can be written to", fix="name one: TMPDIR=/FOLDER"
            )
        if isinstance(seen, OSError) and seen.errno in _SYSTEM_REFUSALS:
            what = f"{seen.filename}: " if seen.filename else ""
            return FileProblem(f"{what}{seen.strerror}", fix=write_fix(seen))
        if not isinstance(seen, OSError) and os.strerror(errno.ENOSPC) in text:  # libraries say it in their own words
            return FileProblem(reason(seen), fix=write_fix(OSError(errno.ENOSPC, "")))
        seen = seen.__cause__
    return None


_SYSTEM_REFUSALS = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
)
"""What the system says about the user's paths and disks wherever it comes up, and never about an internal error."""


def _internal_error(error: Exception, terminal: Terminal) -> int:
    try:
        fix = f"please report it with {_write_report(error, terminal)}"
    except OSError as full:
        fix = f"please report it; its traceback could not be written ({full.strerror})"
    what = error.message if isinstance(error, ToolkitError) else f"{type(error).__name__}: {reason(error)}"
    terminal.error("fault", f"internal error: {what}", fix)
    return INTERNAL_ERROR


def _usage_message(error: click.UsageError) -> str:
    return error.format_message().rstrip(".")


def _usage_fix(error: click.UsageError, arguments: Sequence[str]) -> str:
    path = error.ctx.command_path if error.ctx else "resnet-onnx"
    if error.ctx is None and arguments[0] in COMMANDS:
        path += f" {arguments[0]}"  # click's parser does not say whose option lacks its value
    return f"{path} --help"


def _write_report(error: Exception, terminal: Terminal) -> Path:
    text = "".join(traceback.format_exception(error)) + "\n--- printed by libraries ---\n" + terminal.chatter()
    handle, name = tempfile.mkstemp(prefix=f"resnet-onnx-fault-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
        file.write(f"resnet-onnx {__version__}: {' '.join(sys.argv)}\n\n{text}")
    return Path(name)


def entry() -> None:
    """The ``resnet-onnx`` program."""
    _open_missing_streams()
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS and arguments[0] not in WORK_HERE and os.environ.get("RANK") is None:
        work_in_child(_terminal(arguments))
    code = main()
    ended(code)
    if code == INTERRUPTED or os.environ.get("WORLD_SIZE", "1") != "1":
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> None:
    """Ends this process with its exit code, and with it every process that it started.

    For one that was interrupted: where the interrupt hit inside the import of a C extension, Python remembers that and
    ends by the signal instead; and a worker that is still importing would notice only later that nobody waits for it.
    For one of several that trained together: threads of its connections to the others are still there, since torch's
    DistributedDataParallel never lets go of its process group, and some that had done all their work were ended by
    SIGABRT when Python took itself apart around them, which torchrun takes for a failed run.
    """
    atexit._run_exitfuncs()
    end_descendants()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _open_missing_streams() -> None:
    """Puts nothing where a caller closed a standard stream (``>&-``): a file opened later would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
