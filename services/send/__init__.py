"""`logpipe send`: a real log file into the ingest API, every line stored once or named in a rejects file."""
