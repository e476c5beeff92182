"""Dense matrices become chains and back, by rules; adapters and experts are added the same way.

small, report = compression.compress(model, [(".*/(query|key|value|out)", dict(bond=64))])
calibration = compression.calibrate(model, batches)  # by the outputs on real texts
rules = [("default", dict(search=True, data_aware=True))]  # all matrices worth compressing
small, report = compression.compress(model, rules, budget=0.6, calibration=calibration)
dense = compression.merge(small)
wider = compression.add_adapters(model, [("layers/.*/(query|value)", dict(rank=8))], rngs=rngs)
"""

from mpojax.compression.adapters import AdapterSettings, adapter_settings, add_adapters
from mpojax.compression.calibration import Calibration, InputStatistics, calibrate
from mpojax.compression.planned import planned_shapes
from mpojax.compression.report import CompressionReport, MatrixRow
from mpojax.compression.rules import Rule, Settings, default_matrices
from mpojax.compression.rules import parse as parse_rule
from mpojax.compression.surgery import check_rules, compress, merge
from mpojax.compression.upcycling import FORMS as EXPERT_FORMS
from mpojax.compression.upcycling import ExpertRule, add_experts, planned_experts

__all__ = [
    "EXPERT_FORMS",
    "AdapterSettings",
    "Calibration",
    "CompressionReport",
    "ExpertRule",
    "InputStatistics",
    "MatrixRow",
    "Rule",
    "Settings",
    "adapter_settings",
    "add_adapters",
    "add_experts",
    "calibrate",
    "check_rules",
    "compress",
    "default_matrices",
    "merge",
    "parse_rule",
    "planned_experts",
    "planned_shapes",
]
