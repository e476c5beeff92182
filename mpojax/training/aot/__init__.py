"""Compiling ahead of time for TPUs that are not there, and what a compiled step would cost on them.

| what                                          | module     |
| slices by name, their devices                 | `topology` |
| work of a compiled program, loops included    | `hlo`      |
| its time on a chip: an estimate, named as one | `estimate` |
"""
