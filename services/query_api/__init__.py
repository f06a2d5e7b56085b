"""The query API: the same question to every store, and whether they gave the same answer at the same point."""
