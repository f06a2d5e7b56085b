"""`logpipe migrate`: makes and extends the tables of PostgreSQL, before the processes of a release start."""
