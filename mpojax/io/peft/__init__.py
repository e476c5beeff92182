"""Low-rank adapters in the folder format of the package peft."""
