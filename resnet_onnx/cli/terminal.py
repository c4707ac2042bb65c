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
from runtimes.text import MOST_SHOWN, shown

if TYPE_CHECKING:
    from rich.progress import Progress

    from resnet_onnx.cli.steps import Lines
    from resnet_onnx.results.document import Document

_WIDE = 200
"""Columns of a table that goes to a file or pipe, so that nothing is wrapped or cut."""

_NARROWEST_TEXT = 24
"""Columns that a last column of text has at least."""

_LONGEST_CELL = 400
"""Characters of a cell; a longer one loses its middle."""


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
            self._write(shown(text) + "\n")

    def advice(self, text: str) -> None:
        """Prints a next step below the result; nothing with ``--quiet`` or ``--json``."""
        if not self.quiet:
            self.line(text)

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

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: int = 1,
        text_last: bool = False,
        expendable: Sequence[str] = ("p90 ms", "p99 ms", "of it", "share of peak"),
    ) -> None:
        """Prints a table for people; a terminal that is too narrow for it gets fewer columns, named below it.

        Args:
            columns: Headings, with units.
            rows: Cells.
            left: How many columns from the left are aligned left; the others hold numbers.
            text_last: Whether the last column holds text, too.
            expendable: Headings of the columns to do without first; then others go, from the right.
        """
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns = [shown(heading) for heading in columns]
        rows = [[shown(cell, most=_LONGEST_CELL) for cell in row] for row in rows]
        width = _width(self._out) if self._ttys[0] else None
        kept = list(range(len(columns))) if width is None else _fitting(columns, rows, left, width, expendable)
        dropped = [heading for index, heading in enumerate(columns) if index not in kept]
        columns, rows = [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]
        table = Table(box=None, pad_edge=True, header_style="bold", padding=(0, 1))
        for index, heading in enumerate(columns):
            aligned = index < left or (text_last and index == len(columns) - 1)
            table.add_column(
                Text(heading),
                justify="left" if aligned else "right",
                no_wrap=0 < index < len(columns) - 1,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*[Text(cell) for cell in row])
        with io.StringIO() as text:
            Console(file=text, width=width or _WIDE, force_terminal=self._ttys[0], highlight=False).print(table)
            self._write(text.getvalue())
        if dropped:
            self.advice(f"For want of room without: {', '.join(dropped)} (--json has all).")

    # ---- beside the result ----

    def note(self, text: str) -> None:
        """Says something beside the result, on stderr; nothing with ``--quiet``."""
        if not self.quiet and not self.mute:
            self._tell(shown(text))

    def error(self, kind: str, message: str, fix: str | None) -> None:
        """Reports the one error of a failed command."""
        if self.as_json and self.final:
            from resnet_onnx.results.document import ErrorDocument, ErrorRecord

            with contextlib.suppress(FileProblem):
                self.emit(ErrorDocument(error=ErrorRecord(kind=kind, message=message, fix=fix)))
        lines = [f"error: {shown(message)}"]
        if fix:
            lines += [f"  {shown(line)}" for line in fix[: 4 * MOST_SHOWN].split("\n")]
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
        """Yields a rich progress display on stderr: bars on a terminal, lines elsewhere, silent with ``--quiet``."""
        from rich.console import Console

        from resnet_onnx.cli.steps import LineProgress, bars

        if self._ttys[1] or self.quiet or self.mute:
            console = Console(file=self._err, force_terminal=self._ttys[1])
            with bars(console, disable=self.quiet or self.mute) as display:
                yield display
            return
        with self._lines() as lines:
            yield LineProgress(lines)

    @contextlib.contextmanager
    def status(self, text: str, *, refresh_per_second: float = 12.5) -> Iterator[Any]:
        """Shows `text` while something of unknown length runs, beside a spinner; ``update(text)`` changes it.

        Drawing takes a core from what is being measured, so that a benchmark asks for less of it.
        """
        if self.quiet or self.mute:
            yield _Still()
        elif self._ttys[1]:
            from rich.console import Console

            from resnet_onnx.cli.steps import Spinner

            console = Console(file=self._err, force_terminal=True)
            with Spinner("", console=console, refresh_per_second=refresh_per_second) as display:
                display.update(text)
                yield display
        else:
            with self._lines() as lines:
                lines.update(text)
                yield lines

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Lines]:
        from resnet_onnx.cli.steps import Lines

        lines = Lines(self.note)
        try:
            yield lines
        finally:
            lines.close()


def _width(stream: TextIO) -> int | None:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return None


def _fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int, expendable: Sequence[str]
) -> list[int]:
    """Returns the places of the columns that fit beside each other; the last one may wrap where it holds text."""
    from rich.cells import cell_len

    widths = [2 + max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    if left >= len(columns):
        widths[-1] = min(widths[-1], _NARROWEST_TEXT)
    middle = range(len(columns) - 2, left - 1, -1)
    order = sorted(middle, key=lambda at: expendable.index(columns[at]) if columns[at] in expendable else len(columns))
    kept = list(range(len(columns)))
    for at in order:
        if sum(widths[index] for index in kept) <= width:
            break
        kept.remove(at)
    return kept


class _Still:
    """A status that shows nothing."""

    def update(self, text: str) -> None:
        """Takes a new text."""
