"""`logpipe alerting`: says when a service writes too many errors, once an episode, and when they have ended."""
