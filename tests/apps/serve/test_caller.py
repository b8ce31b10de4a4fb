"""The client at the other end: whoever waits hears at once that it has gone."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.caller import Caller
from flashmoe.apps.serve.limits import Gone, Limits
from flashmoe.apps.serve.room import Room, Share


class Line:
    """An ASGI receive: a body, then silence until it is cut."""

    def __init__(self):
        self.cut = asyncio.Event()
        self.sent = False

    async def __call__(self):
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.cut.wait()
        return {"type": "http.disconnect"}


async def called():
    line = Line()
    caller = Caller(line)
    with Share(Room(100)) as share:
        assert await caller.body(None, Limits(), share) == b"{}"
    return line, caller


def test_waiting_ends_with_news_with_time_or_with_the_client():
    async def scenes():
        line, caller = await called()
        began = time.monotonic()
        await caller.wait(0.05)
        assert time.monotonic() - began >= 0.04
        threading.Timer(0.05, caller.wake).start()
        await asyncio.wait_for(caller.wait(), 5)
        line.cut.set()
        with pytest.raises(Gone):
            await asyncio.wait_for(caller.wait(), 5)
        with pytest.raises(Gone):
            caller.check()
        caller.close()

    asyncio.run(scenes())


def test_work_in_a_thread_comes_back_with_its_result_or_its_error():
    async def scenes():
        _, caller = await called()
        with ThreadPoolExecutor(1) as executor:
            assert await caller.result(executor, lambda: 3) == 3
            with pytest.raises(ZeroDivisionError):
                await caller.result(executor, lambda: 1 // 0)
        with pytest.raises(Refusal) as caught:
            await caller.result(executor, lambda: 3)
        assert caught.value.status == 503
        caller.close()

    asyncio.run(scenes())


def test_who_leaves_is_not_waited_for_and_what_has_not_begun_never_does():
    begun, go = [], threading.Event()

    async def scenes():
        line, caller = await called()
        with ThreadPoolExecutor(1) as executor:
            executor.submit(go.wait, 20)
            waiting = asyncio.create_task(caller.result(executor, lambda: begun.append(1)))
            await asyncio.sleep(0.05)
            line.cut.set()
            with pytest.raises(Gone):
                await asyncio.wait_for(waiting, 5)
            go.set()
        caller.close()

    asyncio.run(scenes())
    assert begun == []


def test_work_that_was_called_off_is_refused():
    go = threading.Event()

    async def scenes():
        _, caller = await called()
        executor = ThreadPoolExecutor(1)
        executor.submit(go.wait, 20)
        waiting = asyncio.create_task(caller.result(executor, lambda: 1))
        await asyncio.sleep(0.05)
        executor.shutdown(wait=False, cancel_futures=True)
        go.set()
        with pytest.raises(Refusal) as caught:
            await asyncio.wait_for(waiting, 5)
        assert caught.value.code == "server_stopping"
        caller.close()

    asyncio.run(scenes())
