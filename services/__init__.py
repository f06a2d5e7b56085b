"""The log pipeline: one package, one image, many processes (`python -m services <process>`, script `logpipe`).

Rooms, from the inside out: core (no I/O) <- datasets <- runtime, streams, stores, ledger <- the processes.
"""
