"""What becomes of each variable of a TensorFlow checkpoint, decided from names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import numpy as np

from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_layers import WHOLE_TOWER, Row, decoder_rows, decoder_sizes, place, tower_rows
from aocr_torch.model.endpoints import ENDPOINTS, up_to


class Match(NamedTuple):
    """A variable of the file and the tensor that it becomes."""

    theirs: str
    ours: str
    layout: str
    shape: tuple[int, ...]
    """In the file."""


@dataclass
class Report:
    """What becomes of each variable of a TensorFlow checkpoint. Nothing in the file is in none of the lists."""

    kind: str
    """'Inception-v3' or 'Attention-OCR'."""
    final_endpoint: Optional[str] = None
    decoder: Optional[str] = None
    """'attention' or 'NetSlice'."""
    num_classes: Optional[int] = None
    num_lstm_units: Optional[int] = None
    decoder_inputs: Optional[int] = None
    """C of an attention decoder, width of the input of a NetSlice decoder's cell."""
    matched: list[Match] = field(default_factory=list)
    momentum_matched: list[Match] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    """Name in the file -> why."""
    missing: list[str] = field(default_factory=list)
    """Names in the table that the file lacks."""
    problems: dict[str, str] = field(default_factory=dict)
    """Name in the file -> why it makes a conversion impossible, such as a wrong shape."""
    step_name: Optional[str] = None
    step: Optional[int] = None
    """global_step; None for an Inception-v3 or where the file has none."""
    momentum: dict[str, np.ndarray] = field(default_factory=dict)
    """Parameter name -> Momentum slot."""

    @property
    def error(self) -> Optional[str]:
        """One line on everything needed that is missing or wrong, None if all is well."""
        lines = [f"{name} {problem}" for name, problem in self.problems.items()]
        if self.missing:
            shown = ", ".join(self.missing[:3]) + (", ..." if len(self.missing) > 3 else "")
            lines.append(f"{len(self.missing)} variables are missing: {shown}")
        return "; ".join(lines) or None


class _Sorted(NamedTuple):
    """The names of a file by what they are: table name -> name in the file."""

    values: dict[str, str]
    momentum: dict[str, str]
    averages: dict[str, str]


def _sort_names(names: Iterable[str], report: Report) -> _Sorted:
    known = _Sorted({}, {}, {})
    by_role = {"value": known.values, "Momentum": known.momentum, "average": known.averages}
    for name in names:
        base, role = place(name)
        if role == "slot":
            report.ignored[name] = "slot of an optimizer other than Momentum"
        elif name == "global_step":
            report.step_name = name
        elif role == "other":
            report.ignored[name] = "not a variable of the model"
        elif base in by_role[role]:
            report.problems[name] = f"stands for the same tensor as {by_role[role][base]}"
        else:
            by_role[role][base] = name
    return known


def _last_endpoint(names: Iterable[str]) -> Optional[str]:
    """The deepest endpoint of which these table names hold anything."""
    found = {name.split("/")[1] for name in names if name in WHOLE_TOWER}
    return next((endpoint for endpoint in reversed(ENDPOINTS) if endpoint in found), None)


def plan_conversion(
    variables: Mapping[str, tuple],
    final_endpoint: Optional[str] = None,
    parts: Optional[Sequence[str]] = None,
    use_moving_average: bool = False,
) -> Report:
    """What would become of each variable, from names and shapes alone; look at `error` of the report.

    Args:
        variables: name -> (dtype, shape), as a reader's `variables`.
        final_endpoint: where the tower ends; default Mixed_5d for an Inception-v3, the file's last one otherwise.
        parts: ('tower',), ('decoder',) or both; default: what the file is made of.
        use_moving_average: takes the ExponentialMovingAverage of a variable where there is one.

    Raises:
        CheckpointError: the file holds neither of the two models.
        ValueError: an endpoint is unknown.
    """
    if final_endpoint is not None:
        up_to(final_endpoint)
    report = Report("Attention-OCR")
    known = _sort_names(variables, report)
    if report.step_name and (
        variables["global_step"][0] not in ("int32", "int64") or variables["global_step"][1] != ()
    ):
        report.problems["global_step"] = "is {} of shape {}, expected one integer".format(*variables["global_step"])
    chosen = {**known.values, **known.averages} if use_moving_average else known.values
    is_whole = any(name.startswith("sequence_logit_fn/") for name in chosen)
    if is_whole:
        report.decoder = "NetSlice" if any("/rnn_decoder/" in name for name in chosen) else "attention"
    elif _last_endpoint(chosen) is not None:
        report.kind = "Inception-v3"
    else:
        raise CheckpointError(
            f"neither an Inception-v3 nor an Attention-OCR: none of the {len(variables)} variables "
            f"({', '.join(sorted(variables)[:3])}, ...) lies under InceptionV3/ or sequence_logit_fn/SQLR/"
        )
    parts = parts or (("tower", "decoder") if is_whole else ("tower",))
    rows: list[Row] = []
    if "tower" in parts:
        report.final_endpoint = final_endpoint or (is_whole and _last_endpoint(chosen)) or "Mixed_5d"
        rows += tower_rows(report.final_endpoint)
    if "decoder" in parts:
        decoder = report.decoder or "attention"
        sizes = decoder_sizes(decoder, {base: variables[name][1] for base, name in chosen.items()})
        rows += decoder_rows(decoder, sizes)
        if sizes is None:
            report.problems["the decoder"] = "has no softmax_w, AttnV_0 or lstm_cell/kernel to tell its sizes"
        else:
            report.num_classes, report.num_lstm_units, report.decoder_inputs = sizes
    if use_moving_average and not known.averages:
        report.problems["ExponentialMovingAverage"] = "was asked for, but no variable has one"
    for row in rows:
        _match(row, variables, chosen, known.momentum if is_whole else {}, report)
    used = {match.theirs for match in report.matched + report.momentum_matched} | set(report.problems)
    _explain_ignored(known, used, report, is_whole)
    return report


def _match(row: Row, variables, chosen, momentum, report: Report) -> None:
    """Puts one line of the table into the report."""
    name = chosen.get(row.theirs)
    if name is None:
        if not row.ours.endswith("bn.weight"):  # without gamma it is 1
            report.missing.append(row.theirs)
        return
    is_trained = not row.ours.endswith(("bn.weight", "running_mean", "running_var"))
    slot = momentum.get(row.theirs) if is_trained else None
    for source, matches in ((name, report.matched), (slot, report.momentum_matched)):
        if source is None:
            continue
        dtype, shape = variables[source]
        wanted = tuple(shape) if row.shape is None else row.in_tf(row.shape)
        if tuple(shape) != wanted:
            report.problems[source] = f"has shape {tuple(shape)}, the model expects {wanted}"
        elif "float" not in str(dtype):
            report.problems[source] = f"is of type {dtype}, expected float32"
        else:
            matches.append(Match(source, row.ours, row.layout, tuple(shape)))


def _explain_ignored(known: _Sorted, used: set[str], report: Report, is_whole: bool) -> None:
    """Gives each name that is not used a reason."""
    if report.step_name and not is_whole:
        report.ignored[report.step_name] = "step of the ImageNet training"
        report.step_name = None
    for names, default in (
        (known.values, "not used: the other part of the model, or not a variable of it"),
        (known.momentum, "Momentum slot of a variable that is not trained here"),
        (known.averages, "moving average, not asked for"),
    ):
        for base, name in names.items():
            if name in used:
                continue
            reason = default
            if names is known.values and base in known.averages and known.averages[base] in used:
                reason = "its moving average is taken"
            elif base.startswith(("InceptionV3/Logits/", "InceptionV3/AuxLogits/")):
                reason = "classifier of ImageNet"
            elif names is known.values and base in WHOLE_TOWER and report.final_endpoint:
                reason = f"behind {report.final_endpoint}"
            report.ignored[name] = reason
