"""The one client of the ingest API, used by the generator, by `logpipe send` and by tests."""
