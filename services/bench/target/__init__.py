"""The stack under test.

    Target          a set of URLs: the query API, the ingest API, Prometheus; local or remote
    .problem()      None, or why the stack cannot be measured, and how to start it
    .query(...)     an HTTP client of the query API, which sends the token
    .compact(...), .verify(...)   `logpipe maintain` and `logpipe verify`, where the URLs of the stores are known
    .url(variable)  the URL of a component, for control arms; .producer_perf() the command of Kafka's own tool
    .cpu(), .disk() what each component has used so far; {} where the target cannot tell
    .components()   those that can be killed; .kill(name) ends one at once

`LocalTarget` adds what only a stack on this machine can tell, and is the one that imports `services.local`.
"""
