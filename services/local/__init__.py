"""The local stack: every component and every process of the pipeline as child processes on 127.0.0.1."""
