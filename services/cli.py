"""The `logpipe` script: finds a command's module and hands over. No logic of a command is here.

A plain `pip install logpipe` has what `logpipe send` and clients of the APIs need. Every other command needs one or
more extras, and says so when they are missing.
"""

import importlib
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class Command:
    """`target`: module:attribute of the click command. `extras`: what it needs beyond a plain install."""

    target: str
    extras: str
    summary: str


COMMANDS = {
    "up": Command("services.local.main:up", "local", "Start the local stack and wait until it is ready."),
    "down": Command("services.local.main:down", "local", "Stop the local stack; its data is kept."),
    "env": Command("services.local.main:env", "local", "Print the settings by which other commands find it."),
    "status": Command("services.local.main:status", "local", "Show what runs, where, and whether it is ready."),
    "logs": Command("services.local.main:logs", "local", "Show the log of one process, or of all."),
    "demo": Command("services.local.demo:demo", "local", "Start everything, send load, verify, show the results."),
    "migrate": Command("services.migrate.main:main", "server,lake", "Bring the tables in PostgreSQL to this release."),
    "ingest-api": Command("services.ingest_api.main:main", "server", "Accept rows by HTTP and publish them to Kafka."),
    "kafka-source": Command("services.kafka_source.main:main", "server", "Take a foreign topic into a dataset."),
    "slots": Command(
        "services.ingest_api.slots_command:main", "server,lake", "List the slots of batches; resolve a stuck one."
    ),
    "stream-to-store": Command(
        "services.stream_to_store.main:main", "server,lake", "Load datasets from Kafka into a store."
    ),
    "stream-to-lake": Command("spark_jobs.stream_to_lake:main", "spark", "Load datasets from Kafka into the lake."),
    "realtime-aggregator": Command(
        "spark_jobs.realtime_aggregator:main", "spark", "Count logs in windows of 10 seconds."
    ),
    "daily-report": Command(
        "spark_jobs.reports:daily_report", "spark", "Report a day: levels, error rate, busiest hours."
    ),
    "service-analysis": Command("spark_jobs.reports:service_analysis", "spark", "Analyse a day by service."),
    "generator": Command("services.generator.main:main", "server", "Make rows and send them to the ingest API."),
    "alerting": Command("services.alerting.main:main", "server", "Open and resolve alerts when services have errors."),
    "query-api": Command("services.query_api.main:main", "server,lake", "Serve the query API."),
    "bench": Command("services.bench.main:main", "bench", "Run benchmarks, check and compare their evidence."),
    "verify": Command("services.verify.main:main", "server,lake", "Compare what the stores hold with the ledger."),
    "replay": Command("services.replay.main:main", "server,lake", "Refill a store from PostgreSQL, exactly once."),
    "maintain": Command("services.maintenance.main:main", "server,lake", "Merge small files and drop old days."),
    "disk-space": Command("services.disk_space.main:main", "server", "Serve how full the disk of a folder is."),
    "backup": Command("services.backup.main:backup", "server,lake", "Back up PostgreSQL, with the ledger."),
    "restore": Command("services.backup.main:restore", "server,lake", "Restore PostgreSQL from a backup."),
    "ledger-restored": Command(
        "services.backup.restored_command:main", "server,lake", "Make a ledger fit for use after a restore."
    ),
    "send": Command("services.send.main:main", "", "Send a log file, or standard input, to the ingest API."),
}


class _Commands(click.Group):
    """Imports the module of the command that runs, and no other: the summaries for --help are those of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, error) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Some commands import the driver of a store when they open that store."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing(ctx.invoked_subcommand or "", error) from error


def _missing(name: str, error: ModuleNotFoundError) -> Exception:
    """Return what the user installs, or the error itself when the module is one of ours."""
    module = (error.name or "").partition(".")[0]
    if module in ("services", "spark_jobs", ""):
        return error
    extras = f"logpipe[{COMMANDS[name].extras}]" if COMMANDS[name].extras else "logpipe"
    return click.ClickException(f"{name} needs the package {module}, which is not installed: pip install '{extras}'")


@click.group(cls=_Commands)
@click.version_option(package_name="logpipe", message="%(prog)s %(version)s")
def main() -> None:
    """Distributed log pipeline: one entry point for every process and tool."""
