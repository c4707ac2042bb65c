"""The files in a bundle that run it: verbatim copies of ours, so that their hashes tell whether they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from runtimes import registry
from runtimes.environment import package_version
from runtimes.errors import UsageError

_EVERYWHERE = ("numpy", "pillow", "cykooz-resizer")
"""What every bundle needs beside the runtime's library."""

_ONLY_WHERE = {
    "cykooz-resizer": "(sys_platform == 'linux' and platform_machine == 'x86_64') or "
    "(sys_platform == 'win32' and platform_machine == 'AMD64') or sys_platform == 'darwin'"
}
"""Where there are wheels; elsewhere NumPy computes the same."""


def need_standalone(runtime: str) -> str:
    """Returns the module that runs a runtime's models without this program.

    Raises:
        UsageError: There is none; names the runtimes that have one.
    """
    adapter = registry.adapter(runtime)
    if not adapter.standalone:
        others = ", ".join(registry.runtimes_that(lambda adapter: bool(adapter.standalone)))
        raise UsageError(
            f"runtime '{runtime}' can't be bundled: it {adapter.not_bundled_because}",
            fix=f"bundle it for one of {others}",
        )
    return adapter.standalone


def templates(runtime: str) -> dict[str, Path]:
    """Returns the files of ours that a bundle carries, by their names in it; raises as ``need_standalone``."""
    return {
        "run.py": _file("resnet_onnx.deploy.standalone.run"),
        "verify.py": _file("resnet_onnx.deploy.standalone.verify"),
        "picture_tensor.py": _file("resnet_onnx.models.picture_tensor"),
        "engine.py": _file(need_standalone(runtime)),
    }


def write_runner(runtime: str, folder: Path) -> None:
    """Copies the files that run a bundle into it."""
    for name, path in templates(runtime).items():
        (folder / name).write_bytes(path.read_bytes())


def packages(runtime: str) -> dict[str, str]:
    """Returns the versions of the distributions that a bundle needs, as they are installed here."""
    library = registry.adapter(runtime).distributions
    first = next((name for name in library if package_version(name)), None)
    found = {name: package_version(name) for name in (*([first] if first else []), *_EVERYWHERE)}
    return {name: version for name, version in found.items() if version}


def write_requirements(folder: Path, found: Mapping[str, str]) -> None:
    """Writes ``requirements.txt``, which pins what was measured."""
    # A local version (2.9.0+cu130) is of a build that no index has.
    lines = [
        f"{name}=={version.partition('+')[0]}" + (f"; {_ONLY_WHERE[name]}" if name in _ONLY_WHERE else "") + "\n"
        for name, version in found.items()
    ]
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")


def _file(module: str) -> Path:
    """Finds a module's file without importing it."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)
