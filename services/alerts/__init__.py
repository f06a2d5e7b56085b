"""The alerts in PostgreSQL: their tables and all SQL about them.

The room lies below the processes, because several of them use it: alerting writes the alerts, the query API shows them,
and maintain deletes old ones.
"""
