"""The query API: runs the same query on every store, and compares the results as of the same batch."""
