"""The dashboards as code: one module for each, and `python -m kubernetes.monitoring.dashboards` writes their JSON."""
