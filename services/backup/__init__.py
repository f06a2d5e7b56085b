"""`logpipe backup` and `logpipe restore`: PostgreSQL with the ledger, from which every other store is refilled."""
