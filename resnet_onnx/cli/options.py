"""Options that several commands share, and the wrapper that every command runs in."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import ToolkitError, UsageError

if TYPE_CHECKING:
    from resnet_onnx.workflow import Request

F = TypeVar("F", bound=Callable[..., Any])


def make_command(name: str, *, example: str, polite: bool = False) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a command of a function that takes a ``Terminal`` first.

    Adds ``--json``, ``--quiet``, ``--verbose`` and ``--cache-dir``; puts an example at the end of ``--help``.

    Args:
        name: What the user types.
        example: One line that works.
        polite: Whether torch's idle threads should sleep rather than spin. A command that shares the cores with worker
            processes is many times faster so; one that measures must not change how its runtimes wait.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, quiet: bool, verbose: bool, cache_dir: Path | None, **arguments: Any) -> None:
            terminal: Terminal = click.get_current_context().find_object(Terminal) or Terminal()
            if polite:
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads
            terminal.as_json, terminal.quiet, terminal.verbose = as_json, quiet, verbose
            # Help and usage errors come before this, from click itself; from here on libraries have no say.
            with _cache_at(cache_dir), terminal.without_chatter():
                function(terminal, **arguments)

        for option in (
            click.option("--cache-dir", type=click.Path(path_type=Path), help="Cache folder (or $RESNET_ONNX_CACHE)."),
            click.option("--verbose", is_flag=True, help="Show what the libraries print."),
            click.option("--quiet", is_flag=True, help="No progress, no notes."),
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
        ):
            run = option(run)
        # \b keeps click from breaking the example where it has a hyphen, so that it can be copied.
        epilog = f"\b\nExample: {example}"
        return click.command(name, epilog=epilog, context_settings={"max_content_width": 110})(run)

    return decorate


@contextlib.contextmanager
def _cache_at(folder: Path | None) -> Iterator[None]:
    """Names the cache in the environment, where child processes find it too, for as long as a command runs."""
    before = os.environ.get("RESNET_ONNX_CACHE")
    if folder is not None:
        os.environ["RESNET_ONNX_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ["RESNET_ONNX_CACHE"] = before
        else:
            os.environ.pop("RESNET_ONNX_CACHE", None)


class Triple(click.ParamType[Any]):
    """Three numbers for the channels: ``0.485,0.456,0.406``."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Splits the text; a single number stands for all three channels."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        try:
            numbers = tuple(float(part) for part in parts)
        except ValueError:
            self.fail(f"'{value}' is not a list of three numbers like 0.485,0.456,0.406", param, ctx)
        if len(numbers) == 1:
            numbers = numbers * 3
        if len(numbers) != 3:
            self.fail(f"'{value}' has {len(numbers)} numbers, expected three: R,G,B", param, ctx)
        return numbers


class Number(click.FloatRange):
    """A finite number in a range: ``nan`` lies in every range that is asked with < and >."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number", param, ctx)
        return number


class OutputFile(click.Path):
    """A file to write: what is known to be in its way is said before minutes of work, not after them.

    With `folder` it may also name the folder to write into, and with `file` off nothing else.
    """

    def __init__(self, *, folder: bool = False, file: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=folder, file_okay=file)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Checks the nearest folder that exists; those below it are made when the file is written."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        whole = path.absolute()
        into = whole.parents if self.file_okay and not whole.is_dir() else (whole, *whole.parents)
        folder = next(parent for parent in into if parent.exists())
        if not folder.is_dir():
            self.fail(f"'{value}' can't be written: {folder} is a file, expected a folder", param, ctx)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"'{value}' can't be written: no permission to write in {folder}", param, ctx)
        return path


class WholeNumbers(click.ParamType[Any]):
    """A comma list of whole numbers ≥ 1; messages show `example`."""

    name = "N,N"

    def __init__(self, example: str = "1,8") -> None:
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Splits the text; repeats are dropped."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in str(value).split(",") if part.strip()))
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers like {self._example}", param, ctx)
        if not numbers or min(numbers) < 1:
            self.fail(f"'{value}': expected whole numbers of at least 1, like {self._example}", param, ctx)
        return numbers


class PictureSize(click.ParamType[Any]):
    """The side of a picture, pixels, or ``test``."""

    name = "N|test"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the number."""
        if value == "test":
            return value
        try:
            number = int(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number of pixels nor 'test'", param, ctx)
        if number < 1:
            self.fail(f"{number}: expected at least 1 pixel", param, ctx)
        return number


weights_entry_option = click.option(
    "--weights-entry", metavar="NAME", help="Which network of a weights file that holds several (EMA …)."
)

resize_option = click.option(
    "--resize", type=click.IntRange(1, 4096), help="Shorter side before the crop, pixels; the model's own by default."
)


def model_options(*, required: bool = True, argument: bool = True) -> Callable[[F], F]:
    """Adds MODEL and what can be said about it; the command gets one ``request``.

    Args:
        required: Whether MODEL must be given.
        argument: Whether there is a MODEL argument at all.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, request=_request(kwargs), **kwargs)

        decorated: Any = run
        for option in (
            click.option(
                "--seed",
                type=click.IntRange(0, 2**31 - 1),
                default=0,
                show_default=True,
                help="Of random weights and sample inputs.",
            ),
            click.option("--shortcut", type=click.Choice(["A", "B", "C"]), help="The paper's shortcut option."),
            click.option("--variant", type=click.Choice(["v1", "v1.5"]), help="Stride in the 1×1 (v1) or 3×3 (v1.5)."),
            click.option(
                "--image-size",
                type=PictureSize(),
                help="Side of the input picture, pixels; 'test' is what a library states for testing.",
            ),
            resize_option,
            click.option(
                "--output-name", metavar="NAME", help="Output that holds the scores, of a model with several."
            ),
            click.option(
                "--labels",
                metavar="FILE|imagenet|cifar10",
                help="Names of the outputs, one a line; also numbered, CSV, JSON, with WordNet ids.",
            ),
            click.option("--std", type=Triple(), help="Standard deviation per channel, as fractions of 255."),
            click.option("--mean", type=Triple(), help="Mean per channel, as fractions of 255."),
            click.option(
                "--weights",
                metavar="random|imagenet|pretrained|PATH",
                help="Weights of a named architecture; 'pretrained' are a library's own.",
            ),
            weights_entry_option,
            click.option(
                "--model",
                "model_name",
                metavar="NAME",
                help="Architecture of a weights file: of the catalog, timm:NAME or torchvision:NAME.",
            ),
        ):
            decorated = option(decorated)
        if argument:
            decorated = click.argument("model", required=required, metavar="MODEL" if required else "[MODEL]")(
                decorated
            )
        result: F = decorated
        return result

    return decorate


def _request(kwargs: dict[str, Any]) -> Request:
    from resnet_onnx.workflow import Request

    model = kwargs.pop("model", None)
    name = kwargs.pop("model_name")
    size = kwargs.pop("image_size")
    if model is None and name is not None:
        model, name = name, None
    return Request(
        model=model,
        name=name,
        weights=kwargs.pop("weights"),
        weights_entry=kwargs.pop("weights_entry"),
        seed=kwargs.pop("seed"),
        variant=kwargs.pop("variant"),
        shortcut=kwargs.pop("shortcut"),
        image_size=None if size == "test" else size,
        test_size=size == "test",
        resize=kwargs.pop("resize"),
        mean=kwargs.pop("mean"),
        std=kwargs.pop("std"),
        labels=kwargs.pop("labels"),
        output_name=kwargs.pop("output_name"),
    )


def check_drawing(path: Path) -> None:
    """Raises ``UsageError`` where a drawing has an ending that is not supported."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: a drawing is a .png, .svg or .pdf")


def early_problem(request: Request) -> ToolkitError | None:
    """Raises a usage error at once; a problem with the model itself has to wait for the check of the runtimes."""
    from resnet_onnx import workflow

    try:
        workflow.check_request(request)
    except UsageError:
        raise
    except ToolkitError as error:
        return error
    return None


def runtime_option(*, default: str, several: bool) -> Callable[[F], F]:
    """Adds ``--runtime`` (also spelt ``--runtimes``)."""
    text = "Runtimes, a comma list, or 'all' that are available here." if several else "Runtime."
    return click.option("--runtime", "--runtimes", "runtimes", default=default, show_default=True, help=text)


device_option = click.option("--device", help="cpu, cuda or cuda:N; the runtime's own by default.")
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads; all usable cores by default.")
training_data_option = click.option(
    "--data", metavar="D", help="Labelled pictures: a folder, a .zip, digits or cifar10.  [default: digits]"
)
workers_option = click.option(
    "--workers", type=click.IntRange(0, 256), help="Processes that load pictures; chosen by default."
)
save_option = click.option("--save", type=OutputFile(), help="Write the result as JSON.")


class_order_option = click.option(
    "--class-order",
    type=click.Choice(["number", "name"]),
    help="Of class folders named by numbers, for a model without labels: 2 before 10, or after it as in ImageFolder.",
)


def one_runtime(argument: str) -> str:
    """Returns the single runtime that was named.

    Raises:
        UsageError: Several were named, or none that exists.
    """
    from runtimes.registry import parse_names

    names = parse_names(argument)
    if len(names) != 1:
        raise UsageError(f"this command takes one runtime, not {len(names)} ({', '.join(names)})")
    return names[0]
