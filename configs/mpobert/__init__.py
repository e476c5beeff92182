"""The MPOBERT paper (Findings of EMNLP 2023): very deep encoders that share central cores."""
