"""The benchmarks: `logpipe bench`.

plan      what is measured: YAML, checked line by line
target    the stack under test: a set of URLs, and what else of the stack can be reached
probes    what measures: open-loop schedules of reads and writes, the knee, faults, control arms, k6
evidence  one folder for each run: every sample, so that every number can be computed again
report    every number, from the evidence only; the page, Markdown and JSON
cases     the figures of the table of goals, each against a limit that is measured in the same run

`run.py` takes the cells of a plan through the probes into the evidence. `main.py` has the commands.
"""
