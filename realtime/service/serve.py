"""``realtime serve``: decodes the runs that a scanner sends, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from realtime.errors import RealtimeError
from realtime.report import summary as report_summary
from realtime.report import write
from realtime.service.service import Options, Service, interrupts, open_page

_log = logging.getLogger(__name__)


def serve(options: Options, *, open_browser: bool, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; a run that is open then stays open, and the next ``serve`` resumes it.

    :param tell: takes lines for the operator
    :raises RealtimeError: when it cannot start
    """
    asyncio.run(_serve(Service(options), options, open_browser, tell))


async def _serve(service: Service, options: Options, open_browser: bool, tell: Callable[[str], None]) -> None:
    with interrupts() as stop:
        await service.start()
        for line in describe(service, options):
            tell(line)
        if open_browser and service.url:
            await asyncio.to_thread(open_page, service.url)
        service.pipeline.resume_last()
        reporting = asyncio.create_task(_report_runs(service.closed))
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(service.pipeline.run()),
            asyncio.create_task(stop.wait()),
        ]
        try:
            done, _ = await asyncio.wait([*tasks, reporting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*tasks)
            open_folder = await service.stop(end_run=False)
            if open_folder:
                service.closed.put_nowait(open_folder)
            all_reported = asyncio.create_task(service.closed.join())
            await asyncio.wait([all_reported, reporting], return_when=asyncio.FIRST_COMPLETED)
            await cancel(all_reported, reporting)
        for task in done:
            task.result()


def describe(service: Service, options: Options) -> list[str]:
    """Lines for the operator at the start."""
    spec = service.bundle.spec
    shipped = "the shipped demo bundle (a simulated subject)" if options.bundle_is_demo else "bundle"
    published = [f"results published at {service.publish_address}"] if service.publish_address else []
    return [
        f"decoding with {shipped} {spec.name}, subject {spec.subject}: {service.bundle.folder}",
        f"the bundle is {service.bundle.signed.description}",
        f"on {service.engine_description}",
        f"volumes from {service.source_address}, runs recorded in {options.out.absolute()}",
        *published,
        f"page: {service.url}" if service.url else "no page (headless)",
    ]


async def cancel(*tasks: asyncio.Task[object]) -> None:
    """Cancel tasks and wait until they have ended; their exceptions are not raised here."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _report_runs(closed: asyncio.Queue[Path]) -> None:
    while True:
        await asyncio.to_thread(_write, await closed.get())
        closed.task_done()


def _write(folder: Path) -> None:
    try:
        summary = write.write_report(folder)
    except RealtimeError as error:
        _log.warning("cannot write a report of %s: %s", folder, error)
        return
    for line in (
        f"{summary.run_id} ({summary.state}): {folder / 'report.html'}",
        *report_summary.lines(summary),
    ):
        _log.info("%s", line)
