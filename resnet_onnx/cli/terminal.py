"""What reaches the user: results on stdout, progress and errors on stderr, libraries' chatter nowhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from runtimes.errors import FileProblem

if TYPE_CHECKING:
    from rich.progress import Progress

    from resnet_onnx.results.document import Document

_WIDE = 200
"""Columns of a table that goes to a file or pipe, so that nothing is wrapped or cut."""


def _scratch() -> Any:
    """Returns a file for what libraries print: a temporary one, or nowhere where no temporary file can be made."""
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full disk, or a read-only machine: no reason not to work, or not to clear the cache
        return open(os.devnull, "w+b")


class Terminal:
    """The streams of one command.

    Args:
        as_json: stdout is exactly one JSON document.
        quiet: No progress and no notes.
        verbose: Libraries' own output is shown on stderr.

    Attributes:
        mute: Another process speaks for the command: this one shows no result, no note and no progress, and reports
            only errors that it alone has.
        final: Whether an error ends the command; if it is started anew after one, that is not a result yet.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.mute = False
        self.final = True
        self._out: TextIO = sys.stdout
        self._err: TextIO = sys.stderr
        self._chatter: Any = None
        self._last_chatter = ""

    @contextlib.contextmanager
    def without_chatter(self) -> Iterator[None]:
        """Catches what libraries print, also from native code, for as long as the command works."""
        with contextlib.ExitStack() as stack:
            sys.stdout.flush()
            sys.stderr.flush()
            kept = [os.dup(1), os.dup(2)]
            if not self.verbose:
                self._chatter = stack.enter_context(_scratch())
            python_streams = sys.stdout, sys.stderr
            tty = python_streams[0].isatty(), python_streams[1].isatty()
            self._out = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace"))
            self._err = stack.enter_context(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1))
            self._ttys = tty
            sink = os.dup(2 if self._chatter is None else self._chatter.fileno())
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.stdout = os.fdopen(os.dup(sink), "w", encoding="utf-8", errors="replace")
            sys.stderr = sys.stdout
            try:
                yield
            finally:
                self._last_chatter = self._read_chatter()
                # A reader that went away must not turn into a second error while the streams are put back.
                with contextlib.suppress(OSError, ValueError):
                    self._out.flush()
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.close()
                os.dup2(kept[0], 1)
                os.dup2(kept[1], 2)
                for handle in (*kept, sink):
                    os.close(handle)
                sys.stdout, sys.stderr = python_streams
                self._out, self._err = python_streams

    _ttys: tuple[bool, bool] = (False, False)

    def chatter(self) -> str:
        """Returns the end of what libraries printed while the command worked, for a fault report."""
        return self._last_chatter

    def _read_chatter(self) -> str:
        if self._chatter is None:
            return ""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with open(os.dup(self._chatter.fileno()), "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - 20_000))
            return handle.read().decode(errors="replace")

    # ---- results ----

    def emit(self, document: Document) -> None:
        """Prints the result as JSON where it was requested; does nothing otherwise."""
        if self.as_json:
            from resnet_onnx.results.writing import encode

            self._write(encode(document).decode())

    def line(self, text: str = "") -> None:
        """Prints one line of the result for people; nothing with ``--json``."""
        if not self.as_json:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        if self.mute:
            return
        # A reader that has seen enough (head) ends the reading, not the command: files are still written and the exit
        # code still says how it went.
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            os.dup2(self._nowhere(), self._out.fileno())
            self._out.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.dup2(self._nowhere(), self._out.fileno())
                self._out.flush()
            raise FileProblem(f"can't write the result to standard output: {error.strerror or error}") from error

    def _nowhere(self) -> int:
        if self._null is None:
            self._null = os.open(os.devnull, os.O_WRONLY)
        return self._null

    _null: int | None = None

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
        """Prints a table for people.

        Args:
            columns: Headings, with units.
            rows: Cells.
            left: How many columns from the left are aligned left; the others hold numbers.
        """
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=True, header_style="bold", padding=(0, 1))
        for index, heading in enumerate(columns):
            table.add_column(
                Text(heading), justify="left" if index < left else "right", no_wrap=index < len(columns) - 1
            )
        for row in rows:
            table.add_row(*[Text(cell) for cell in row])
        with io.StringIO() as text:
            width = _width(self._out) if self._ttys[0] else _WIDE
            Console(file=text, width=width, force_terminal=self._ttys[0], highlight=False).print(table)
            self._write(text.getvalue())

    # ---- beside the result ----

    def note(self, text: str) -> None:
        """Says something beside the result, on stderr; nothing with ``--quiet``."""
        if not self.quiet and not self.mute:
            self._tell(text)

    def error(self, kind: str, message: str, fix: str | None) -> None:
        """Reports the one error of a failed command."""
        if self.as_json and self.final:
            from resnet_onnx.results.document import ErrorDocument, ErrorRecord

            with contextlib.suppress(FileProblem):
                self.emit(ErrorDocument(error=ErrorRecord(kind=kind, message=message, fix=fix)))
        lines = [f"error: {message}"]
        if fix:
            lines += [f"  {line}" for line in fix.splitlines()]
        self._tell("\n".join(lines))

    def _tell(self, text: str) -> None:
        try:
            self._err.write(text + "\n")
            self._err.flush()
        except OSError:
            # Nobody can be told, but what remains in the buffer must not become an error when the stream is closed.
            with contextlib.suppress(OSError):
                os.dup2(self._nowhere(), self._err.fileno())
                self._err.flush()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yields a rich progress display on stderr; silent when it is not a terminal or with ``--quiet``."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=self._err, force_terminal=self._ttys[1])
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self.quiet or self.mute or not self._ttys[1],
        ) as display:
            yield display

    @contextlib.contextmanager
    def status(self, text: str, *, refresh_per_second: float = 12.5) -> Iterator[Any]:
        """Shows a spinner with `text` while something of unknown length runs; ``update(text)`` changes it.

        Drawing takes a core from what is being measured, so that a benchmark asks for less of it.
        """
        from rich.console import Console

        console = Console(file=self._err, force_terminal=self._ttys[1])
        if self.quiet or self.mute or not self._ttys[1]:
            yield _Still()
            return
        with console.status(text, refresh_per_second=refresh_per_second) as display:
            yield display


def _width(stream: TextIO) -> int | None:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return None


class _Still:
    """A status that shows nothing."""

    def update(self, text: str) -> None:
        """Takes a new text."""
