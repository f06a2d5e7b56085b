"""Every number of a run, computed from its evidence and from nothing else.

    summary(evidence) -> Summary     pure: the same evidence gives the same numbers (`numbers.py`)
    publish(evidence)                writes report.json (the summary), report.md and report.html
    recheck(evidence) -> problems    computes all again and compares with report.json
    diff(a, b) -> Changes            what differs between two runs, with intervals

`statistics.py` estimates, `judging.py` says which cells are void and which rates are held. A void cell is never ranked.
"""
