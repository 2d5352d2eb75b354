"""What an address may have of the server at once: open requests, places in the queue, connections."""

import time
from collections import Counter
from functools import wraps

from gradio.http_server import Server
from gradio.queueing import Event, Queue
from starlette.responses import PlainTextResponse

AT_ONCE = 1000
"""Requests of an address that may be open at once; a page has up to six."""
MANY = f"Your address has {AT_ONCE:,} requests open already; end some."
HEAD_S = 30
"""Seconds that a request's head may take to come, from the connection's beginning or the answer before on."""


class Shared:
    """ASGI middleware that refuses an address with 429 while `AT_ONCE` of its requests are open."""

    def __init__(self, app):
        self.app, self.open = app, Counter()

    async def __call__(self, scope, receive, send):
        host = (scope.get("client") or [""])[0]
        if self.open[host] >= AT_ONCE:
            return await PlainTextResponse(MANY, 429)(scope, receive, send)
        self.open[host] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open.subtract([host])
            if not self.open[host]:
                del self.open[host]


def fair(queue: Queue) -> None:
    """Gives an address half of the room in the queue that others leave, so that no few of them fill it, and lets
    addresses take turns in each line. Visitors behind one proxy are one address."""
    push = queue.push

    @wraps(push)
    async def fairly(body, request, username):
        lines = queue.event_queue_per_concurrency_id
        hosts = [_host(event) for line in lines.values() for event in line.queue]
        mine = hosts.count(request.client.host)
        if mine and mine >= (queue.max_size - len(hosts) + mine) // 2:
            said = f"{mine} of your address's requests wait already; try again when they are answered."
            return False, said, "queue_full"
        pushed = await push(body, request, username)
        for line in lines.values():
            before = Counter()
            line.queue.sort(key=lambda event: before.update([_host(event)]) or before[_host(event)])
        return pushed

    queue.push = fairly


def _host(event: Event) -> str:
    return event.request.client.host


def hang_up(server: Server) -> None:
    """Closes each connection that has waited `HEAD_S` seconds for a whole head of a request, its first or its next:
    uvicorn waits for ever, and each takes one of the system's places."""
    tick, since = server.on_tick, {}

    @wraps(tick)
    async def look(counter: int) -> bool:
        now = time.monotonic()
        lines = [line for line in server.server_state.connections if hasattr(line, "cycle")]
        waiting = {(line, line.cycle) for line in lines if line.cycle is None or line.cycle.response_complete}
        for key in since.keys() - waiting:
            del since[key]
        for line, cycle in waiting:
            if now - since.setdefault((line, cycle), now) > HEAD_S:
                line.transport.close()
        return await tick(counter)

    server.on_tick = look
