"""The `logpipe` script: finds a command's module and hands over. No logic here."""

import importlib

import click

COMMANDS = {
    "up": "services.local.main:up",
    "down": "services.local.main:down",
    "env": "services.local.main:env",
    "status": "services.local.main:status",
    "logs": "services.local.main:logs",
    "demo": "services.local.demo:demo",
    "migrate": "services.migrate.main:main",
    "ingest-api": "services.ingest_api.main:main",
    "slots": "services.ingest_api.slots_command:main",
    "stream-to-store": "services.stream_to_store.main:main",
    "stream-to-lake": "spark_jobs.stream_to_lake:main",
    "realtime-aggregator": "spark_jobs.realtime_aggregator:main",
    "daily-report": "spark_jobs.reports:daily_report",
    "service-analysis": "spark_jobs.reports:service_analysis",
    "generator": "services.generator.main:main",
    "alerting": "services.alerting.main:main",
    "query-api": "services.query_api.main:main",
    "bench": "services.bench.main:main",
    "verify": "services.verify.main:main",
    "replay": "services.replay.main:main",
    "maintain": "services.maintenance.main:main",
    "ledger-restored": "services.maintenance.restored_command:main",
    "send": "services.send.main:main",
}


class _Lazy(click.Group):
    """Imports only the command that runs, so that `logpipe status` does not load Spark."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Lazy)
@click.version_option(package_name="logpipe", message="%(prog)s %(version)s")
def main() -> None:
    """Distributed log pipeline: one entry point for every process and tool."""
