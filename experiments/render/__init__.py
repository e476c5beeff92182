"""Tables and figures of experiments, each made in one place from one data frame.

`frames` has means over seeds and paired differences, `methods` the colour of every method,
`figures` draws, `runs` and `studies` say what is plotted of a run and of a study.
"""
