"""Compression: rules, calibration, allocation of a budget, decomposition, report, merge.

small, report = compression.compress(model, budget=0.6, calibration=batches)  # the best way
small, report = compression.compress(model, [Rule(".*/(query|key|value|out)", bond=64)])
calibration = compression.calibrate(model, batches)  # by the outputs on real texts
rules = [Rule("all", search=True, data_aware=True)]  # all matrices worth compressing
small, report = compression.compress(model, rules, budget=0.6, calibration=calibration)
dense = compression.merge(small)
wider = compression.add_adapters(model, [Rule("layers/.*/(query|value)", rank=8)], rngs=rngs)

`model` is one of this library, or any Flax NNX module.
"""

from mpojax.compression.adapters import AdapterRule, adapter_settings, add_adapters
from mpojax.compression.allocation import SmallBudgetError
from mpojax.compression.calibration import Calibration, calibrate
from mpojax.compression.choosing import split as split_held_out
from mpojax.compression.compressing import (
    CURVATURE_TOKENS,
    calibration_batches,
    check_rules,
    compress,
    matched,
)
from mpojax.compression.low_rank import METHODS, Method
from mpojax.compression.merging import merge
from mpojax.compression.report import Choice, CompressionReport, MatrixRow
from mpojax.compression.rules import MatrixRule, Rule, named_patterns, planned_shapes
from mpojax.compression.rules import parse as parse_rule
from mpojax.compression.upcycling import FORMS as EXPERT_FORMS
from mpojax.compression.upcycling import ExpertRule, add_experts, planned_experts

__all__ = [
    "CURVATURE_TOKENS",
    "EXPERT_FORMS",
    "METHODS",
    "AdapterRule",
    "Calibration",
    "Choice",
    "CompressionReport",
    "ExpertRule",
    "MatrixRow",
    "MatrixRule",
    "Method",
    "Rule",
    "SmallBudgetError",
    "adapter_settings",
    "add_adapters",
    "add_experts",
    "calibrate",
    "calibration_batches",
    "check_rules",
    "compress",
    "matched",
    "merge",
    "named_patterns",
    "parse_rule",
    "planned_experts",
    "planned_shapes",
    "split_held_out",
]
