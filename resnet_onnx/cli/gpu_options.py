"""Options about NVIDIA devices that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtimes.errors import UsageError

if TYPE_CHECKING:
    from runtimes.base import Runtime
    from runtimes.spec import RuntimeOptions

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Size(click.ParamType[int]):
    """A number of bytes: ``500MB``, ``4GiB``, ``0``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Reads decimal (MB) and binary (MiB) units; a bare number is bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", str(value).upper())
        if found is None or (found[3] and not found[2]):
            self.fail(f"'{value}' is not a size like 500MB, 4GiB or 0", param, ctx)
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])


def size_text(size_bytes: int) -> str:
    """Returns a size for people, in decimal units as disks have them."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    for unit in ("kB", "MB"):
        size_bytes_in_unit = size_bytes / (1e3 if unit == "kB" else 1e6)
        if size_bytes_in_unit < 1000:
            return f"{size_bytes_in_unit:.1f} {unit}"
    return f"{size_bytes / 1e9:.2f} GB"


def tuning_options(function: F) -> F:
    """Adds what changes speed or arithmetic beside the model; the command gets one ``tuning``."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        from runtimes.spec import RuntimeOptions

        chosen = {field.name: kwargs.pop(field.name) for field in fields(RuntimeOptions) if "flag" in field.metadata}
        return function(*args, tuning=RuntimeOptions(**chosen), **kwargs)

    decorated: Any = run
    for option in (
        click.option("--trust-engine", is_flag=True, help="Execute an engine that was not built here; it is code."),
        click.option(
            "--compile-mode",
            type=click.Choice(["default", "max-autotune"]),
            default="default",
            help="torch-compile: how long kernels are looked for.",
        ),
        click.option(
            "--autocast", type=click.Choice(["bf16", "fp16"]), help="torch, torch-compile: round products to that."
        ),
        click.option("--channels-last", is_flag=True, help="torch(-compile), ort-cuda: keep pictures as NHWC."),
        click.option(
            "--exhaustive-search/--no-exhaustive-search",
            default=None,
            help="torch, ort-cuda: cuDNN tries every algorithm, or asks its heuristics. [the library's own]",
        ),
        click.option("--cuda-graph", is_flag=True, help="NVIDIA: capture a run once and replay it."),
        click.option("--tf32", is_flag=True, help="NVIDIA: let fp32 products be rounded to TF32."),
    ):
        decorated = option(decorated)
    result: F = decorated
    return result


def check_tuning(tuning: RuntimeOptions, names: Sequence[str], *, device: str | None) -> None:
    """Raises ``UsageError`` for an option that none of the runtimes would use."""
    from runtimes.registry import adapter, runtimes_that

    for field in fields(tuning):
        if "flag" not in field.metadata or getattr(tuning, field.name) == field.default:
            continue
        here = [name for name in names if field.name in adapter(name).uses]
        where = ""
        if field.metadata.get("cuda_only"):
            here = [name for name in here if adapter(name).resolve_device(device) != "cpu"]
            where = " on an NVIDIA device (--device cuda)"
        if not here:
            using = ", ".join(runtimes_that(functools.partial(_uses, field.name)))
            raise UsageError(f"{field.metadata['flag']} is for {using}{where}, and {', '.join(names)} would not use it")


def _uses(option: str, adapter: type[Runtime]) -> bool:
    return option in adapter.uses
