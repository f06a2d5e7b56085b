"""Jobs that run on Spark."""
