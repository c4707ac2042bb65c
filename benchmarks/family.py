"""Does the promise hold for the families of residual networks in timm and torchvision?

    python benchmarks/family.py [--minutes N] [--only PATTERN]

For one network of each stem, block and attention design, with random weights: exported and verified, held against the
float64 module on the CPU runtimes, and ten of them converted to int8. Each result is appended to
benchmarks/family.jsonl, the cheapest network first; a second call goes on where the first one stopped, and the table in
docs/families.md is written anew. Exit code 1 where a network fails for a reason of ours.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resnet_onnx import workflow
from resnet_onnx.models import counting, libraries
from runtimes.environment import package_version
from runtimes.errors import CheckFailed, ToolkitError, UnsupportedModel, reason

ROOT = Path(__file__).resolve().parent.parent
RECORD, TABLE = ROOT / "benchmarks" / "family.jsonl", ROOT / "docs" / "families.md"
RUNTIMES = ("torch", "ort-cpu", "openvino")

FAMILY = {
    "timm:test_resnet": "basic and bottleneck blocks, deep stem, in miniature",
    "timm:resnet14t": "tiered deep stem",
    "timm:resnet18": "basic blocks",
    "timm:resnet18d": "basic blocks, ResNet-D",
    "timm:resnet26": "bottlenecks",
    "timm:resnet26t": "tiered stem, ResNet-D shortcut",
    "timm:resnet32ts": "tiered stem, SiLU, fewer strides",
    "timm:resnet50": "bottlenecks, v1.5",
    "timm:resnet50c": "deep stem",
    "timm:resnet50d": "ResNet-D",
    "timm:resnet50s": "wide deep stem",
    "timm:resnet50_gn": "group norm",
    "timm:resnetaa34d": "pooling against aliasing",
    "timm:resnetblur18": "blur against aliasing",
    "timm:resnext26ts": "groups, tiered stem",
    "timm:resnext50_32x4d": "groups",
    "timm:resnext50d_32x4d": "groups, ResNet-D",
    "timm:seresnet18": "squeeze-and-excitation, basic",
    "timm:seresnet50": "squeeze-and-excitation",
    "timm:seresnext26d_32x4d": "squeeze-and-excitation, groups",
    "timm:legacy_seresnet18": "the first port of SENet",
    "timm:ecaresnet26t": "channel attention by a 1-D convolution",
    "timm:ecaresnet50t": "channel attention, bottlenecks",
    "timm:gcresnet33ts": "global context",
    "timm:skresnet18": "selective kernels",
    "timm:resnest14d": "split attention",
    "timm:res2net50_14w_8s": "hierarchical groups",
    "timm:resnetv2_18": "pre-activation, basic",
    "timm:resnetv2_50": "pre-activation",
    "timm:resnetv2_50d": "pre-activation, deep stem, ResNet-D",
    "timm:resnetv2_50x1_bit": "pre-activation, group norm, standardised weights",
    "timm:regnetx_002": "RegNet X",
    "timm:regnety_002": "RegNet Y (squeeze-and-excitation)",
    "timm:regnetz_b16": "RegNet Z (inverted bottlenecks)",
    "timm:repvgg_a0": "VGG that trains with branches",
    "torchvision:resnet18": "basic blocks",
    "torchvision:resnet50": "bottlenecks",
    "torchvision:resnext50_32x4d": "groups",
    "torchvision:regnet_x_400mf": "RegNet X",
    "torchvision:regnet_y_400mf": "RegNet Y",
}
INT8 = (
    "timm:test_resnet",
    "timm:resnet14t",
    "timm:resnet18",
    "timm:resnet18d",
    "timm:seresnet18",
    "timm:resnetv2_18",
    "timm:regnetx_002",
    "timm:regnety_002",
    "torchvision:regnet_x_400mf",
    "torchvision:resnet18",
)


def cost(name: str) -> tuple[int, int]:
    """Returns parameters and multiply-adds."""
    entry = libraries.lookup(name)
    counts = counting.count(entry.config, entry.image_size)
    return counts.parameters, counts.multiply_adds


def whose(error: BaseException) -> str:
    """Returns whose fault a failure is, as far as its kind tells."""
    if isinstance(error, UnsupportedModel):
        return "exporter's or runtime's"
    return "the gate's verdict" if isinstance(error, CheckFailed) else "ours"


def tried(name: str, folder: Path) -> dict[str, Any]:
    """Exports a network, compares it and, for some, converts it; returns what came of each."""
    found: dict[str, Any] = {}
    path = folder / "network.onnx"
    step = "export"
    try:
        exported = workflow.export(workflow.resolve(workflow.Request(model=name)), path)
        found["export"] = {"relative_rmse": exported.verified.relative_rmse, "size_bytes": exported.size_bytes}
        step = "parity"
        model = workflow.resolve(workflow.Request(model=str(path)))
        report = workflow.check_parity(model, workflow.ParityPlan(runtimes=RUNTIMES, images=4))
        found["parity"] = {
            row.runtime: {"passed": row.passed, "relative_rmse": row.relative_rmse, "budget": row.budget,
                          "reason": row.reason}
            for row in report.outcomes
        }  # fmt: skip
        if name in INT8:
            step = "int8"
            config = workflow.ConversionConfig(to="int8", count=32)
            converted = workflow.convert(model, folder / "int8.onnx", config)
            found["int8"] = {"agreement": converted.agreement, "sqnr_db": converted.sqnr_db}
    except ToolkitError as error:
        found["failed"] = {"step": step, "reason": error.message, "whose": whose(error)}
    except Exception as error:  # a fault of ours belongs in the table too
        found["failed"] = {"step": step, "reason": f"{type(error).__name__}: {reason(error)}", "whose": "ours"}
    return found


def read_record() -> dict[str, dict[str, Any]]:
    """Returns the newest result of each network."""
    lines = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the table of all networks in Markdown."""
    lines = [
        "| network | design | parameters, M | G multiply-adds | export | parity: worst share of its budget | int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, design in FAMILY.items():
        row = rows.get(name)
        if row is None:
            lines.append(f"| `{name}` | {design} | | | not run yet | | |")
            continue
        cells = [f"`{name}`", design, f"{row['parameters'] / 1e6:.1f}", f"{row['multiply_adds'] / 1e9:.2f}"]
        failed = row.get("failed", {"step": ""})
        why = f"**fails** ({failed.get('whose')}): {failed.get('reason')}"
        cells.append(f"{row['export']['relative_rmse']:.1e}" if "export" in row else why)
        parity = row.get("parity", {})
        refused = [f"{runtime}: {each['reason']}" for runtime, each in parity.items() if not each["passed"]]
        worst = max((each["relative_rmse"] / each["budget"] for each in parity.values()
                     if each["relative_rmse"] is not None and each["budget"]), default=None)  # fmt: skip
        if failed["step"] == "parity":
            cells.append(why)
        else:
            cells.append(f"**fails**: {'; '.join(refused)}" if refused else f"{100 * worst:.0f} %" if worst else "")
        int8 = row.get("int8")
        cells.append(f"{int8['sqnr_db']:.1f} dB" if int8 else why if failed["step"] == "int8" else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table() -> None:
    """Puts the table between the marks in the document."""
    rows = read_record()
    text = TABLE.read_text(encoding="utf-8")
    head, begin, rest = text.partition("<!-- table -->\n")
    _, end, tail = rest.partition("<!-- end of table -->")
    passed = sum(
        "failed" not in row and all(each["passed"] for each in row["parity"].values()) for row in rows.values()
    )
    versions = ", ".join(
        f"{name} {package_version(name)}" for name in ("timm", "torchvision", "torch", "onnxruntime-gpu", "openvino")
    )
    said = f"{passed} of {len(rows)} networks that were run pass, of {len(FAMILY)} ({versions}).\n\n"
    TABLE.write_text(f"{head}{begin}{said}{table(rows)}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    """Runs what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=600, help="begin no further network after so long")
    parser.add_argument("--only", default="*", help="only networks of such a name; they are run again")
    options = parser.parse_args()
    done = read_record()
    costs = {name: cost(name) for name in FAMILY}
    wanted = [name for name in sorted(FAMILY, key=lambda name: costs[name][1]) if fnmatch.fnmatch(name, options.only)]
    began = time.monotonic()
    for name in wanted:
        if (name in done and options.only == "*") or time.monotonic() - began > 60 * options.minutes:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = tried(name, Path(folder))
        parameters, multiply_adds = costs[name]
        row = {"name": name, "parameters": parameters, "multiply_adds": multiply_adds, **found,
               "seconds": round(time.monotonic() - start, 1), "timm": package_version("timm"),
               "torchvision": package_version("torchvision"), "torch": package_version("torch")}  # fmt: skip
        with open(RECORD, "a", encoding="utf-8") as record:
            record.write(json.dumps(row) + "\n")
        print(name, f"{row['seconds']:.0f} s", found.get("failed", "passed"), flush=True)
        write_table()
    write_table()
    return int(any(row.get("failed", {}).get("whose") == "ours" for row in read_record().values()))


if __name__ == "__main__":
    sys.exit(main())
