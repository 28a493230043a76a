import asyncio
import socket
import urllib.error
import urllib.request

import pytest

from galvatron_operator import probes


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def ask(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{probes.PATH}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def is_stuck() -> str:
    raise RuntimeError("a round hangs")


def test_probes_are_told_what_the_process_does_and_what_is_wrong() -> None:
    async def main() -> None:
        port = free_port()
        async with probes.serving(lambda: "stands by", port=port):
            assert await asyncio.to_thread(ask, port) == (200, "stands by")
        async with probes.serving(is_stuck, port=port):
            assert await asyncio.to_thread(ask, port) == (503, "a round hangs")
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(ask, port)

    asyncio.run(main())
