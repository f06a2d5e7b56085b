"""What measures one cell once.

Every probe is a function (target, plan, cell, ...) -> (Trial, Tables), blocks until the trial is over, and ranks
nothing: the report judges. A probe raises LogpipeError only if the trial could not be carried out at all; a failed
request is a sample with its problem.

All requests follow an open-loop schedule (`pacing.py`): their times are fixed before the first one, a late reply delays
no later request, and a response time counts from the intended time.
"""
