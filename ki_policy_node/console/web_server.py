"""The web server of the console: one page, one WebSocket a browser. It knows no ROS; an event loop of its own runs it.

What keeps strangers out: the loopback address, or a token that becomes a cookie which other sites cannot use; the
names in `Host` and `Origin` are checked, so that no page of another site reaches a console on this machine. What keeps
the robot free of the browsers: messages are capped, a client that does not take its data within `SLOW_S` is dropped,
commands are carried out one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from ki_common.errors import KiError
from ki_policy_node.console.control_desk import ControlDesk
from ki_policy_node.console.settings import LOOPBACK_NAMES, ConsoleSettings
from ki_policy_node.errors import NodeError

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name('page')
COOKIE = 'ki_console'
MAX_MESSAGE = 4096  # bytes, from a browser
MAX_CLIENTS = 12
MAX_WAITING = 8  # commands of one client
STATE_S = 0.1
CHUNK_S = 0.2
SLOW_S = 2.0
WRONG_TOKEN_S = 0.5
HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Act = Callable[[dict[str, Any]], str]


class View(Protocol):
    """What the page shows."""

    def about(self) -> dict[str, Any]:
        """What does not change."""
        ...

    def state(self, steady_ns: int) -> dict[str, Any]:
        """What does."""
        ...

    def chunk(self, after: int) -> tuple[int, dict[str, Any]] | None:
        """A chunk later than number `after`."""
        ...


class Pictures(Protocol):
    """The cameras."""

    def jpeg(self, camera: str) -> tuple[int, bytes]:
        """Number and bytes of the newest picture."""
        ...


class Actions(Protocol):
    """The buttons."""

    for_the_operator: dict[str, Act]
    for_everybody: dict[str, Act]

    def press_estop(self) -> str:
        """At once."""
        ...

    def beat(self, name: str) -> None:
        """A live operator; without a name, one who leaves."""
        ...


@dataclass(eq=False)
class _Client:
    """One browser."""

    number: int
    socket: web.WebSocketResponse
    transport: asyncio.Transport | None
    name: str = ''
    waiting: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class ConsoleServer:
    """Serves until `close`, in a thread.

    Args:
        settings: Where, and to whom.
        view: What is shown.
        pictures: Of the cameras that `view` names.
        actions: What the buttons do.

    Raises:
        NodeError: the address cannot be served on, or a file of TLS or of the token cannot be used.
    """

    def __init__(self, settings: ConsoleSettings, view: View, pictures: Pictures, actions: Actions) -> None:
        self._settings, self._view, self._pictures, self._actions = settings, view, pictures, actions
        self._token = read_token(Path(settings.token_file).expanduser()) if settings.token_file else ''
        self._tls = tls_of(settings)
        self._desk = ControlDesk()
        self._clients: dict[int, _Client] = {}
        self._count = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='console-actions')
        self._stopper = ThreadPoolExecutor(1, thread_name_prefix='console-stops')  # what stops waits for nothing else
        self._painter = ThreadPoolExecutor(1, thread_name_prefix='console-pictures')
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._started: threading.Event = threading.Event()
        self._failure: OSError | None = None
        self.port = settings.port
        self._thread = threading.Thread(target=self._run, name='console', daemon=True)
        self._thread.start()
        self._started.wait(10.0)
        if self._failure is not None:
            raise NodeError(f'{settings.host} port {settings.port} cannot be served on: {self._failure.strerror}.')

    @property
    def address(self) -> str:
        """Where the page is."""
        scheme = 'https' if self._tls is not None else 'http'
        host = f'[{self._settings.host}]' if ':' in self._settings.host else self._settings.host
        return f'{scheme}://{host}:{self.port}/'

    def close(self) -> None:
        """Says goodbye to every browser, and ends the thread."""
        if self._thread.is_alive() and self._failure is None:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
        self._worker.shutdown(wait=False)
        self._stopper.shutdown(wait=False)
        self._painter.shutdown(wait=False)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
            self._started.set()
            self._loop.run_forever()
        except OSError as error:
            self._failure = error
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()
            self._started.set()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_MESSAGE)
        app.router.add_get('/', self._page)
        app.router.add_get('/ws', self._socket)
        app.router.add_post('/estop', self._estop)
        app.router.add_static('/page/', PAGE)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port, ssl_context=self._tls)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        for client in list(self._clients.values()):
            await client.socket.close(code=WSCloseCode.GOING_AWAY, message=b'the console ends')
        if self._runner is not None:
            await self._runner.cleanup()

    # Who may come in.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if why := self._stranger(request):
            raise web.HTTPForbidden(text=why, headers=HEADERS)
        if self._token and (answer := await self._without_token(request)) is not None:
            return answer
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _stranger(self, request: web.Request) -> str:
        """Why a request does not come from our own page; empty when it does."""
        host = request.host
        name = host.rpartition(':')[0].strip('[]') if host.rpartition(':')[2].isdigit() else host.strip('[]')
        if self._settings.is_loopback and name not in (*LOOPBACK_NAMES, self._settings.host):
            return 'This console is for the machine that it runs on.'
        scheme = 'https' if self._tls is not None else 'http'
        changes = request.method != 'GET' or request.path == '/ws'
        if changes and request.headers.get('Origin', '') != f'{scheme}://{host}':
            return 'This does not come from the page of the console.'
        return ''

    async def _without_token(self, request: web.Request) -> web.StreamResponse | None:
        """What to answer one who has not shown the token yet; None for one who has."""
        if hmac.compare_digest(request.cookies.get(COOKIE, '').encode(), self._token.encode()):
            return None
        brought = request.query.get('token', '')
        if request.path == '/' and brought:
            if hmac.compare_digest(brought.encode(), self._token.encode()):
                answer = web.HTTPSeeOther('/', headers=HEADERS)
                secure = self._tls is not None
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite='Strict', secure=secure)
                raise answer
            await asyncio.sleep(WRONG_TOKEN_S)
        text = 'Open the console with its token: add ?token=... to the address; the token is in the file token_file.'
        return web.Response(status=401, text=text, headers=HEADERS)

    # The page.

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / 'index.html', headers=HEADERS)

    async def _estop(self, request: web.Request) -> web.StreamResponse:
        """For a page whose socket is gone."""
        log.warning('%s pressed the e-stop.', request.remote)
        return web.Response(text=self._actions.press_estop())

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._clients) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f'{MAX_CLIENTS} browsers watch already; close one.')
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, heartbeat=5.0, compress=False)
        await socket.prepare(request)
        self._count += 1
        client = self._clients[self._count] = _Client(self._count, socket, request.transport)
        try:
            await self._send(client, self._view.about() | {'client': client.number})
            client.tasks = [
                asyncio.ensure_future(work(client))
                for work in (self._tell_state, self._tell_chunks, self._tell_pictures)
            ]
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._hear(client, message.data)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # a browser that is gone, or too slow
        finally:
            for task in client.tasks:
                task.cancel()
            del self._clients[client.number]
            if self._desk.release(client.number):
                self._actions.beat('')
            await socket.close()
        return socket

    # To a browser.

    async def _send(self, client: _Client, plain: dict[str, Any]) -> None:
        text = json.dumps(plain, allow_nan=False, default=str)
        await asyncio.wait_for(client.socket.send_str(text), SLOW_S)

    async def _repeat(self, client: _Client, every_s: float, send: Callable[[], Awaitable[None]]) -> None:
        try:
            while not client.socket.closed:
                begin = time.monotonic()
                await send()
                await asyncio.sleep(max(0.01, every_s - (time.monotonic() - begin)))
        except (ConnectionError, asyncio.TimeoutError):
            log.warning('Browser %d is dropped: it does not take its data.', client.number)
            if client.transport is not None:
                client.transport.abort()

    async def _tell_state(self, client: _Client) -> None:
        async def send() -> None:
            now_ns = time.monotonic_ns()
            holder = self._desk.holder(now_ns)
            control = {
                'name': holder.name if holder else '',
                'mine': holder is not None and holder.client == client.number,
            }
            # In microseconds: a number in JavaScript is exact up to 2^53.
            about = {'control': control, 'sent': now_ns // 1000, 'watching': len(self._clients)}
            state = self._view.state(now_ns) | about
            await self._send(client, state)

        await self._repeat(client, STATE_S, send)

    async def _tell_chunks(self, client: _Client) -> None:
        told = 0

        async def send() -> None:
            nonlocal told
            found = self._view.chunk(told)
            if found is not None:
                told, chunk = found
                await self._send(client, chunk)

        await self._repeat(client, CHUNK_S, send)

    async def _tell_pictures(self, client: _Client) -> None:
        cameras: list[str] = self._view.about()['cameras']
        told: dict[str, int] = {}

        async def send() -> None:
            for place, camera in enumerate(cameras):
                number, data = await self._loop.run_in_executor(self._painter, self._pictures.jpeg, camera)
                if data and told.get(camera) != number:
                    told[camera] = number
                    await asyncio.wait_for(client.socket.send_bytes(struct.pack('B', place) + data), SLOW_S)

        await self._repeat(client, 1.0 / self._settings.picture_rate, send)

    # From a browser.

    async def _hear(self, client: _Client, text: str) -> None:
        try:
            said = json.loads(text)
            do = said['do']
        except (ValueError, TypeError, KeyError):
            return
        now_ns = time.monotonic_ns()
        if do == 'beat':
            echoed = said.get('sent')
            if isinstance(echoed, int) and (name := self._desk.beat(client.number, echoed * 1000, now_ns)):
                self._actions.beat(name)
        elif do == 'estop':
            log.warning('%s pressed the e-stop.', client.name or f'browser {client.number}')
            await self._answer(client, said, True, self._actions.press_estop())
        elif do == 'claim':
            why = self._desk.claim(client.number, str(said.get('name', '')), now_ns, said.get('insist') is True)
            holder = self._desk.holder(now_ns)
            if not why and holder is not None:
                client.name = holder.name
                self._actions.beat(holder.name)
            await self._answer(client, said, not why, why or 'You are in control.')
        elif do == 'release':
            if self._desk.release(client.number):
                self._actions.beat('')
            await self._answer(client, said, True, 'Nobody is in control.')
        else:
            await self._act(client, do, said, now_ns)

    async def _act(self, client: _Client, do: Any, said: dict[str, Any], now_ns: int) -> None:
        """Carries out what a button asks for; the page is heard meanwhile."""
        act = self._actions.for_everybody.get(do) if isinstance(do, str) else None
        worker = self._worker if act is None else self._stopper
        if act is None and isinstance(do, str) and do in self._actions.for_the_operator:
            act = self._actions.for_the_operator[do]
            if not self._desk.holds(client.number, now_ns):
                await self._answer(client, said, False, 'Take control first.')
                return
        if act is None or client.waiting >= MAX_WAITING:
            await self._answer(client, said, False, 'Unknown.' if act is None else 'Too many at once; wait.')
            return
        client.waiting += 1
        task = asyncio.ensure_future(self._carry_out(client, act, said, worker))
        client.tasks = [each for each in client.tasks if not each.done()] + [task]

    async def _carry_out(self, client: _Client, act: Act, said: dict[str, Any], worker: ThreadPoolExecutor) -> None:
        try:
            text, good = await self._loop.run_in_executor(worker, act, said), True
        except KiError as error:
            text, good = str(error), False
        finally:
            client.waiting -= 1
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):  # who asked may be gone
            await self._answer(client, said, good, text)

    async def _answer(self, client: _Client, said: dict[str, Any], good: bool, text: str) -> None:
        await self._send(client, {'type': 'answer', 'to': str(said.get('do'))[:40], 'good': good, 'text': text})


def read_token(path: Path) -> str:
    """The token in a file, which is made, for its owner alone, where there is none.

    Raises:
        NodeError: the file cannot be read or made, others may read it, or its token is too short.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, 'w') as file:
                file.write(secrets.token_urlsafe(24) + '\n')
        if path.stat().st_mode & 0o077:
            raise NodeError(f'token_file {path} can be read by others; write chmod 600 {path}.')
        token = path.read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(f'token_file {path} cannot be used: {error}.') from error
    if len(token) < 16 or not token.isascii() or not token.isprintable() or ' ' in token:
        raise NodeError(f'token_file {path} holds no token of 16 letters or more; delete it, and a new one is made.')
    return token


def tls_of(settings: ConsoleSettings) -> ssl.SSLContext | None:
    """How connections are encrypted; None where they are not.

    Raises:
        NodeError: a file that is no certificate or key, or cannot be read.
    """
    if not settings.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*map(str, settings.files()))
    except (OSError, ssl.SSLError) as error:
        raise NodeError(f'certificate {settings.certificate} cannot be used: {error}.') from error
    return context
