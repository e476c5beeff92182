"""Models in and out: folders of ours and of Hugging Face, GGUF files, adapters, weight files.

model = io.load_pretrained("path/or/hub-id")
io.save_pretrained(model, "folder")
io.export_huggingface(model, "other-folder")
"""

from mpojax.io.adapter_files import fingerprint, load_adapter, save_adapter
from mpojax.io.folders import (
    export_huggingface,
    load_pretrained,
    open_pretrained,
    save_pretrained,
)
from mpojax.io.gguf.tokenizer import gguf_tokenizer, write_gguf_tokenizer
from mpojax.io.peft.adapter_folder import load_peft, save_peft
from mpojax.io.serving import export_serving
from mpojax.io.sources import local_folder, locate
from mpojax.io.weights import read_weights, write_folder

__all__ = [
    "export_huggingface",
    "export_serving",
    "fingerprint",
    "gguf_tokenizer",
    "load_adapter",
    "load_peft",
    "load_pretrained",
    "local_folder",
    "locate",
    "open_pretrained",
    "read_weights",
    "save_adapter",
    "save_peft",
    "save_pretrained",
    "write_folder",
    "write_gguf_tokenizer",
]
