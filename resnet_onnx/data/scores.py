"""Which output of a model holds the scores of its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtimes.errors import BadModel, ToolkitError, UsageError
from runtimes.onnx_types import BFLOAT16
from runtimes.spec import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The output that holds the scores.

    Attributes:
        output: None where that is not settled.
        note: What the user should know of the choice, or "".
        problem: Why it is not settled, or None.
    """

    output: TensorSpec | None
    note: str = ""
    problem: ToolkitError | None = None

    def settled(self) -> TensorSpec:
        """Returns the output; raises `problem` where there is none."""
        if self.output is None:
            raise self.problem or BadModel("the model has no output")
        return self.output


UNSETTLED = Scores(output=None)
"""Of a model whose outputs were not looked at."""


def class_axis(output: TensorSpec) -> int | str | None:
    """Returns how many scores an output has per picture, or the name of that open dimension; None where it has none.

    Scores may come as [batch, class] or, from networks that end in a pooling, as [batch, class, 1, 1].
    """
    if len(output.shape) < 2 or any(extent != 1 for extent in output.shape[2:]):
        return None
    return output.shape[1]


def find_scores(
    outputs: Sequence[TensorSpec],
    who: str,
    *,
    named: str | None = None,
    fits: Callable[[int], bool] | None = None,
) -> Scores:
    """Finds the output that holds the scores of a model.

    A single output holds them, whatever it is. Of several, only those can that are floating and [batch, classes] with
    more than one class: places, class numbers and feature maps are never taken for scores. Where more than one is left,
    the number of labels decides, and nothing else does: the last features before the scores look just like them.

    Args:
        outputs: The model's.
        who: Its name, for messages.
        named: ``--output-name``.
        fits: Tells whether the labels are those of so many outputs; None where there are no labels.

    Raises:
        UsageError: `named` is not an output of the model, or does not hold scores.
    """
    able = [output for output in outputs if _able(output)]
    if named is not None:
        chosen = next((output for output in outputs if output.name == named), None)
        if chosen is None:
            raise UsageError(f"--output-name {named}: {who} has no such output; {_what_there_is(outputs)}")
        if len(outputs) > 1 and chosen not in able:
            raise UsageError(
                f"--output-name {named}: {chosen} does not hold scores, which are floating [batch, classes]; "
                f"{_what_there_is(outputs)}"
            )
        return Scores(output=chosen)
    if len(outputs) == 1:
        return Scores(output=outputs[0])
    if not able:
        return Scores(
            output=None,
            problem=BadModel(
                f"{who}: none of its {len(outputs)} outputs holds scores, which are floating [batch, classes]; "
                f"{_what_there_is(outputs)}"
            ),
        )
    why = ""
    fitting = _fitting(able, fits) if fits is not None else []
    if len(able) > 1 and len(fitting) == 1:
        able, why = fitting, ", the only one with a score for each label"
    if len(able) > 1:
        return Scores(output=None, problem=_ambiguous(who, able, fits is not None, bool(fitting)))
    rest = ", ".join(str(output) for output in outputs if output is not able[0])
    return Scores(output=able[0], note=f"the scores are read from its output {able[0]}{why}; not from {rest}")


def _able(output: TensorSpec) -> bool:
    floating = np.issubdtype(output.dtype, np.floating) or output.dtype == BFLOAT16
    return floating and class_axis(output) not in (None, 0, 1)


def _fitting(able: Sequence[TensorSpec], fits: Callable[[int], bool]) -> list[TensorSpec]:
    """Returns the outputs with as many classes as there are labels; where none has, those that leave it open."""
    closed = [output for output in able if isinstance(count := class_axis(output), int) and fits(count)]
    return closed or [output for output in able if isinstance(class_axis(output), str)]


def _what_there_is(outputs: Sequence[TensorSpec]) -> str:
    return f"its outputs are {', '.join(map(str, outputs))}"


def _ambiguous(who: str, able: Sequence[TensorSpec], labelled: bool, fitting: bool) -> UsageError:
    why = f"{'several have' if fitting else 'none has'} one for each label" if labelled else "there are no labels"
    return UsageError(
        f"{who}: {len(able)} of its outputs could hold the scores, and {why}: {', '.join(map(str, able))}",
        fix=" or ".join(f"--output-name {output.name}" for output in able)
        + ("" if labelled else "; --labels FILE tells how many classes there are"),
    )
