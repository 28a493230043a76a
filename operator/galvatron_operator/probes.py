"""Answers the kubelet's probes for as long as the process lives, also while it stands by and kopf does not run.

On the event loop on purpose: a loop that is stuck answers nobody, and the kubelet ends it.
"""

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

PATH = "/healthz"


@contextlib.asynccontextmanager
async def serving(check: Callable[[], str], *, port: int) -> AsyncIterator[None]:
    """Answer probes as long as the context is open.

    Args:
        check: says what the process does; raises RuntimeError when it is not well.
        port: on all addresses.
    """

    async def answer(_: web.Request) -> web.Response:
        try:
            return web.Response(text=check())
        except RuntimeError as error:
            return web.Response(status=503, text=str(error))

    application = web.Application()
    application.router.add_get(PATH, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
