"""The console's server without a robot: who gets in, who is in control, and what broken or slow browsers do to it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

aiohttp = pytest.importorskip('aiohttp')

from ki_policy_node.console import web_server  # noqa: E402
from ki_policy_node.console.control_desk import ControlDesk  # noqa: E402
from ki_policy_node.console.settings import ConsoleSettings  # noqa: E402
from ki_policy_node.errors import NodeError  # noqa: E402

MS = 1_000_000


class Robot:
    """View, pictures and actions of a robot that is not there."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.beats: list[str] = []
        self.picture = b'\xff\xd8\xff' + bytes(60_000)
        self.number = 0
        self.for_the_operator = {'enable': lambda given: self.note('enable'), 'fail': self.fail}
        self.for_everybody = {'stop': lambda given: self.note('stop')}

    def note(self, what: str) -> str:
        self.done.append(what)
        return f'{what} done'

    def fail(self, given: dict[str, Any]) -> str:
        raise NodeError('It does not answer.')

    def press_estop(self) -> str:
        return self.note('estop')

    def beat(self, name: str) -> None:
        self.beats.append(name)

    def about(self) -> dict[str, Any]:
        return {'type': 'about', 'robot': 'none', 'columns': [], 'cameras': ['scene']}

    def state(self, steady_ns: int) -> dict[str, Any]:
        return {'type': 'state', 'text': '<script>'}

    def chunk(self, after: int) -> tuple[int, dict[str, Any]] | None:
        return None

    def jpeg(self, camera: str) -> tuple[int, bytes]:
        self.number += 1
        return self.number, self.picture


@pytest.fixture
def robot() -> Robot:
    return Robot()


@pytest.fixture
def serve(robot: Robot) -> Iterator[Callable[..., web_server.ConsoleServer]]:
    made = []

    def start(**settings: Any) -> web_server.ConsoleServer:
        given = ConsoleSettings.parse({'robot': 'none', 'port': 0} | settings)
        made.append(web_server.ConsoleServer(given, robot, robot, robot))
        return made[-1]

    yield start
    for server in made:
        server.close()


def talk(work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        jar = aiohttp.CookieJar(unsafe=True)  # an address without a name has cookies, too
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            return await asyncio.wait_for(work(session), 20)

    return asyncio.run(run())


async def answer_of(ws: Any, kind: str = 'answer') -> dict[str, Any]:
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT and (said := json.loads(message.data))['type'] == kind:
            return said
    raise AssertionError('the socket was closed')


def socket_of(session: Any, server: Any, **headers: str) -> Any:
    return session.ws_connect(server.address + 'ws', headers={'Origin': server.address.rstrip('/')} | headers)


def test_the_page_comes_with_headers_that_keep_other_sites_out(serve: Any) -> None:
    server = serve()

    async def look(session: Any) -> None:
        async with session.get(server.address) as reply:
            assert reply.status == 200
            assert "default-src 'self'" in reply.headers['Content-Security-Policy']
            text = await reply.text()
        assert 'http://' not in text
        assert 'https://' not in text
        for name in ('console.js', 'console.css'):
            async with session.get(f'{server.address}page/{name}') as reply:
                assert reply.status == 200
                assert reply.headers['X-Content-Type-Options'] == 'nosniff'
        async with session.get(f'{server.address}page/../web_server.py') as reply:
            assert reply.status == 404

    talk(look)


@pytest.mark.parametrize(
    ('path', 'headers'),
    [
        ('', {'Host': 'evil.example'}),  # a name that resolves to this machine
        ('', {'Host': 'evil.example:80'}),
        ('ws', {'Origin': 'https://evil.example'}),
        ('ws', {}),
        ('estop', {'Origin': 'https://evil.example'}),
    ],
)
def test_who_comes_from_another_site_gets_nothing(serve: Any, robot: Robot, path: str, headers: dict[str, str]) -> None:
    server = serve()

    async def look(session: Any) -> int:
        request = session.post if path == 'estop' else session.get
        async with request(server.address + path, headers=headers) as reply:
            return int(reply.status)

    assert talk(look) == 403
    assert robot.done == []


def test_only_who_is_in_control_moves_the_robot_and_everybody_stops_it(serve: Any, robot: Robot) -> None:
    server = serve()

    async def play(session: Any) -> None:
        async with socket_of(session, server) as ada, socket_of(session, server) as bob:
            await ada.send_json({'do': 'enable'})
            assert (await answer_of(ada))['text'] == 'Take control first.'
            await ada.send_json({'do': 'claim', 'name': 'Ada'})
            assert (await answer_of(ada))['good']
            await bob.send_json({'do': 'claim', 'name': 'Bob'})
            assert 'Ada has control' in (await answer_of(bob))['text']
            await bob.send_json({'do': 'stop'})
            assert (await answer_of(bob))['text'] == 'stop done'
            await bob.send_json({'do': 'estop'})
            assert (await answer_of(bob))['good']
            await ada.send_json({'do': 'enable'})
            assert (await answer_of(ada))['text'] == 'enable done'
            await ada.send_json({'do': 'fail'})
            assert (await answer_of(ada)) == {
                'type': 'answer',
                'to': 'fail',
                'good': False,
                'text': 'It does not answer.',
            }
            state = await answer_of(bob, 'state')
            assert state['control'] == {'name': 'Ada', 'mine': False}
            await bob.send_json({'do': 'claim', 'name': 'Bob', 'insist': True})
            assert (await answer_of(bob))['good']
            await ada.send_json({'do': 'enable'})
            assert not (await answer_of(ada))['good']

    talk(play)
    assert robot.done == ['stop', 'estop', 'enable']


def test_the_heartbeat_of_who_is_in_control_is_passed_on_and_a_page_that_closes_is_told(
    serve: Any, robot: Robot
) -> None:
    server = serve()

    async def play(session: Any) -> None:
        async with socket_of(session, server) as ada:
            await ada.send_json({'do': 'claim', 'name': 'Ada'})
            await answer_of(ada)
            sent = (await answer_of(ada, 'state'))['sent']
            await ada.send_json({'do': 'beat', 'sent': sent})
            await ada.send_json({'do': 'beat', 'sent': sent - 1_000_000})  # held back for a second
            await ada.send_json({'do': 'beat', 'sent': 'now'})
            await answer_of(ada, 'state')

    talk(play)
    wait_for(lambda: robot.beats[-1:] == [''])
    assert robot.beats == ['Ada', 'Ada', ''], 'who takes control, who is there, who is gone'


@pytest.mark.parametrize(
    'text', ['', 'no json', '[]', '7', '{}', '{"do": 7}', '{"do": []}', '{"do": "nothing"}', '{"do": "__class__"}']
)
def test_nonsense_does_nothing_and_the_socket_lives(serve: Any, robot: Robot, text: str) -> None:
    server = serve()

    async def play(session: Any) -> None:
        async with socket_of(session, server) as ws:
            await ws.send_str(text)
            await ws.send_json({'do': 'stop'})
            while (await answer_of(ws))['text'] != 'stop done':
                pass

    talk(play)
    assert robot.done == ['stop']


def test_a_message_that_is_too_long_ends_its_socket_alone(serve: Any, robot: Robot) -> None:
    server = serve()

    async def play(session: Any) -> None:
        async with socket_of(session, server) as long, socket_of(session, server) as other:
            await long.send_str('x' * 5000)
            while (await long.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                pass
            await other.send_json({'do': 'stop'})
            assert (await answer_of(other))['good']

    talk(play)


def test_a_browser_that_takes_nothing_is_dropped_and_holds_up_nobody(
    serve: Any, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, 'SLOW_S', 0.3)
    robot.picture = b'\xff\xd8\xff' + bytes(2_000_000)
    server = serve(picture_rate=60.0)
    deaf = socket.create_connection(('127.0.0.1', server.port))
    host = f'127.0.0.1:{server.port}'
    lines = [f'GET /ws HTTP/1.1\r\nHost: {host}', f'Origin: http://{host}', 'Upgrade: websocket', 'Connection: Upgrade']
    lines += ['Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Version: 13', '', '']
    deaf.sendall('\r\n'.join(lines).encode())

    async def play(session: Any) -> None:
        async with socket_of(session, server) as ws:
            end = time.monotonic() + 10.0
            while (await answer_of(ws, 'state'))['watching'] != 1 or time.monotonic() < end - 9.0:
                assert time.monotonic() < end, 'the one that takes nothing is still there'

    talk(play)
    deaf.close()


def test_a_network_needs_the_token_which_becomes_a_cookie(serve: Any, tmp_path: Path) -> None:
    file = tmp_path / 'secret' / 'token'
    server = serve(host='0.0.0.0', token_file=str(file))
    address = server.address.replace('0.0.0.0', '127.0.0.1')
    token = file.read_text().strip()
    assert len(token) >= 24
    assert file.stat().st_mode & 0o777 == 0o600

    async def look(session: Any) -> None:
        for path in ('', 'page/console.js', '?token=wrong', f'page/console.js?token={token}'):
            async with session.get(address + path) as reply:
                assert reply.status == 401, path
        async with session.get(f'{address}?token={token}', allow_redirects=False) as reply:
            assert reply.status == 303
            cookie = reply.headers['Set-Cookie']
            assert 'HttpOnly' in cookie
            assert 'SameSite=Strict' in cookie
        async with session.get(address) as reply:
            assert reply.status == 200

    talk(look)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'host': '0.0.0.0'}, 'there is no token_file; name a file for the token, or serve on 127.0.0.1'),
        ({'host': 'robot.local'}, 'there is no token_file'),
        ({'private_key': 'key.pem'}, 'private_key is given without a certificate'),
        ({'port': 70000}, 'port'),
    ],
)
def test_settings_that_would_open_a_door_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(NodeError, match=said):
        ConsoleSettings.parse({'robot': 'none'} | settings)


def test_a_token_that_others_read_or_that_is_short_and_a_port_in_use_are_refused(serve: Any, tmp_path: Path) -> None:
    open_file, short = tmp_path / 'open', tmp_path / 'short'
    open_file.write_text('0123456789abcdefghij')
    open_file.chmod(0o644)
    short.write_text('short')
    short.chmod(0o600)
    with pytest.raises(NodeError, match='can be read by others; write chmod 600'):
        serve(token_file=str(open_file))
    with pytest.raises(NodeError, match='holds no token of 16 letters'):
        serve(token_file=str(short))
    with pytest.raises(NodeError, match=r'certificate .* cannot be used'):
        serve(certificate=str(short))
    server = serve()
    with pytest.raises(NodeError, match=f'port {server.port} cannot be served on'):
        serve(port=server.port)


def test_with_a_certificate_the_page_is_encrypted_and_its_cookie_secure(serve: Any, tmp_path: Path) -> None:
    key, cert, file = tmp_path / 'key.pem', tmp_path / 'cert.pem', tmp_path / 'token'
    command = f'openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key} -out {cert}'
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip('openssl is not installed: TLS of the console was NOT checked here')
    server = serve(certificate=str(cert), private_key=str(key), token_file=str(file))
    assert server.address.startswith('https://')
    trust = ssl.create_default_context(cafile=str(cert))
    trust.check_hostname = False

    async def look(session: Any) -> str:
        url = f'{server.address}?token={file.read_text().strip()}'
        async with session.get(url, ssl=trust, allow_redirects=False) as reply:
            return str(reply.headers['Set-Cookie'])

    assert 'Secure' in talk(look)


def test_control_is_lost_by_silence_and_late_heartbeats_count_for_nothing() -> None:
    desk = ControlDesk()
    assert 'Say who you are' in desk.claim(1, ' \n ', 0)
    assert desk.claim(1, 'Ada\tLovelace ' + 'x' * 100, 0) == ''
    holder = desk.holder(0)
    assert holder is not None
    assert holder.name == 'Ada Lovelace ' + 'x' * 27
    assert desk.beat(1, 500 * MS, 900 * MS) == holder.name
    assert desk.beat(1, 500 * MS, 1300 * MS) == '', 'an answer to what was sent 800 ms ago'
    assert desk.beat(1, 1400 * MS, 1300 * MS) == '', 'nor to what was not sent yet'
    assert desk.beat(2, 1300 * MS, 1300 * MS) == ''
    assert desk.holds(1, 2800 * MS)
    assert desk.holder(3000 * MS) is None
    assert desk.claim(2, 'Bob', 3000 * MS) == ''
    assert not desk.release(1)
    assert desk.release(2)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)
