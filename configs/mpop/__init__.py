"""Rows of the MPOP paper (ACL 2021); see `base.py` for the fields of a run."""
