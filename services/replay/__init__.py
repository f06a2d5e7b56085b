"""`logpipe replay`: refills a store from PostgreSQL, where its topic no longer has the rows."""
