"""Models in and out: Hugging Face folders, weight files, dense <-> MPO.

model = interop.load_pretrained("path/or/hub-id")
small, report = interop.compress(model, [(".*/(query|key|value|out)", dict(bond=64))])
interop.save_pretrained(small, "folder")
calibration = interop.calibrate(model, batches)  # by the outputs on real texts
rules = [("default", dict(search=True, data_aware=True))]  # all matrices worth compressing
small, report = interop.compress(model, rules, budget=0.6, calibration=calibration)
interop.export_huggingface(interop.merge(small), "other-folder")
wider = interop.add_adapters(model, [("layers/.*/(query|value)", dict(rank=8))], rngs=nnx.Rngs(0))
"""

from mpojax.interop.adapter_arithmetic import add, extract, resize, unmerge
from mpojax.interop.adapter_files import fingerprint, load_adapter, save_adapter
from mpojax.interop.adapters import AdapterSettings, adapter_settings, add_adapters
from mpojax.interop.calibration import Calibration, InputStatistics, calibrate
from mpojax.interop.experts import FORMS as EXPERT_FORMS
from mpojax.interop.experts import ExpertRule, add_experts, planned_experts
from mpojax.interop.gguf_tokenizers import gguf_tokenizer, write_gguf_tokenizer
from mpojax.interop.peft_format import load_peft, save_peft
from mpojax.interop.planned import planned_shapes
from mpojax.interop.pretrained import (
    export_huggingface,
    load_pretrained,
    save_pretrained,
)
from mpojax.interop.report import CompressionReport, MatrixRow
from mpojax.interop.rules import Rule, Settings, default_matrices
from mpojax.interop.rules import parse as parse_rule
from mpojax.interop.safe_weights import read_weights, write_folder
from mpojax.interop.sources import local_folder, locate
from mpojax.interop.surgery import check_rules, compress, merge

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
    "add",
    "add_adapters",
    "add_experts",
    "calibrate",
    "check_rules",
    "compress",
    "default_matrices",
    "export_huggingface",
    "extract",
    "fingerprint",
    "gguf_tokenizer",
    "load_adapter",
    "load_peft",
    "load_pretrained",
    "local_folder",
    "locate",
    "merge",
    "parse_rule",
    "planned_experts",
    "planned_shapes",
    "read_weights",
    "resize",
    "save_adapter",
    "save_peft",
    "save_pretrained",
    "unmerge",
    "write_folder",
    "write_gguf_tokenizer",
]
