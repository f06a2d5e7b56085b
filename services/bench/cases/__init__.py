"""The figures of the table of goals: `logpipe bench figures`. Each is a ratio to a limit measured in the same run.

Each case starts a stack of its own. What compares stores, or searches a knee, is a plan (`services/bench/plan`).
"""
