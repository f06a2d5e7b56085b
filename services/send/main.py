"""`logpipe send`: parses, wires, runs."""

import asyncio
import shlex
import sys
from functools import partial

import click
from rich.console import Console

from services.core.errors import LogpipeError, OtherLedger
from services.datasets import all_datasets
from services.ingest_client.client import IngestClient
from services.send import transfer
from services.send.formats import FORMATS
from services.send.parse import JSON_FORMATS
from services.send.plan import Given, Plan
from services.send.report import RejectsFile, View, summary
from services.send.settings import SendSettings
from services.send.transfer import Totals, Transfer

_ABOUT = JSON_FORMATS | {form.name: form.about for form in FORMATS.values()}
_FORMATS = "\n".join(f"  {name:<13} {about}" for name, about in _ABOUT.items())

_HELP = f"""Send a log file (plain, gzip or zstd), or standard input ('-'), into the ingest API.

\b
Formats (without --format: the one that most of the first 100 lines parse as):
{_FORMATS}

Levels become ERROR, WARN, INFO or DEBUG; a level with another name is kept in metadata.level. A stack trace, and in
log4j, openstack and klog every line without a time, is added to the message of the row before it. The parts of a line
that docker and cri split are joined again, up to 64 KiB a row.
Other lines that do not parse, and rows that ingest refuses, go to the rejects file as line number, reason and line, and
the exit code is 2.

Each send is a new one: a file sent twice is stored twice. To go on after an interruption, or to send what a log file
has grown by since, use --resume: it keeps the run's options, years and Idempotency-Keys, and stores nothing twice. Of a
log that was rotated, resume the rotated file first, under its new name, and then the new file under the old name. A
resume is refused when the record of the earlier send is lost or damaged, and when the rows went to a pipeline that was
wiped since. If the pipeline was restored from a backup since, a resume sends the rows again that the backup has not.
Ingest remembers keys for 24 hours; resume an interrupted send within that time.

Exit codes: 0 all sent, 1 stopped by an error, 2 some lines rejected, 130 interrupted.

Settings: LOGPIPE_INGEST_URL, LOGPIPE_TOKEN, LOGPIPE_SEND_STATE, LOGPIPE_SEND_REQUEST_ROWS, LOGPIPE_SEND_IN_FLIGHT,
LOGPIPE_SEND_PATIENCE.
"""


@click.command(help=_HELP)
@click.argument("path", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True))
@click.option(
    "--dataset",
    type=click.Choice([dataset.name for dataset in all_datasets()]),
    help="Whose rows the lines become: logs from every format, footprints from combined, common and ndjson, the others"
    " from ndjson.  [default: logs]",
)
@click.option("--format", type=click.Choice(list(_ABOUT)), help="The file's format.")
@click.option(
    "--pattern",
    metavar="REGEX",
    help="A format of your own: must match whole lines; groups timestamp (needed), level, service, host, message;"
    " any other group goes into metadata.",
)
@click.option(
    "--time-format",
    metavar="STRPTIME",
    help="Of --pattern's timestamp, such as '%d.%m.%Y %H:%M:%S.%f'; '%s': seconds since 1970. Default: ISO 8601.",
)
@click.option("--service", help="For rows that name none.  [default: the format's, or the file's name]")
@click.option("--host", help="For rows that name none.")
@click.option("--level", help="For rows that have none.  [default: INFO]")
@click.option("--timezone", metavar="NAME", help="Of times without a zone.  [default: UTC]")
@click.option(
    "--year",
    type=click.IntRange(1970, 2099),
    help="Of the first line, where times have none.  [default: so that the last line is not after the file's time]",
)
@click.option("--rejects", type=click.Path(dir_okay=False, writable=True), help="[default: PATH's name + .rejects]")
@click.option("--resume", is_flag=True, help="Send only what an earlier send of this file did not.")
def main(path: str, rejects: str | None, resume: bool, **given: str | int | None) -> None:
    settings = SendSettings()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    again = f"go on with: logpipe send --resume {shlex.quote(path)}" if path != "-" else "what was acked stays stored"
    try:
        plan = Plan(
            path,
            Given(**given),  # type: ignore[arg-type]
            resume=resume,
            folder=settings.send_state,
            request_rows=settings.send_request_rows,
            say=console.print,
        )
    except (LogpipeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rejects_file = RejectsFile(rejects or f"{plan.source.name}.rejects", append=plan.resumed)
    totals, code = Totals(), 0
    view = View(console, totals, plan.source.size)
    try:
        with view.shown():
            asyncio.run(_transfer(settings, plan, rejects_file, view, totals))
    except KeyboardInterrupt:
        console.print(f"interrupted; {again}")
        code = 130
    except OtherLedger as error:
        console.print(f"stopped: {error}")
        code = 1
    except (LogpipeError, OSError) as error:
        console.print(f"stopped: {error}\n{again}")
        code = 1
    finally:
        rejects_file.close()
        plan.close()
    if note := plan.source.note():
        console.print(note)
    Console(highlight=False).print(summary(totals, view.seconds, rejects_file.path))
    sys.exit(code or (2 if totals.rejected else 0))


async def _transfer(settings: SendSettings, plan: Plan, rejects: RejectsFile, view: View, totals: Totals) -> None:
    token = settings.token.get_secret_value() if settings.token else ""
    async with IngestClient(
        settings.ingest_url, token, patience=settings.send_patience, stall=transfer.STALLED_SECONDS
    ) as client:
        ledger = await client.ledger(view.retrying)
        if plan.journal and plan.journal.bind(ledger, client.former_ledgers):
            plan.rewind()
        send = partial(client.send, plan.dataset, on_retry=view.retrying)
        sending = Transfer(send, plan.run, plan.journal, rejects.write, settings.send_in_flight, totals)
        bar = asyncio.create_task(view.keep_up())
        try:
            await sending.run(plan.chunks())
        finally:
            bar.cancel()
