"""Real sockets that send slowly, or nothing."""

import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import uvicorn

from regionhash.service.connections import BODY, CLOSED, Connection, connection_type
from regionhash.service.limits import Limits

LIMITS = Limits(header_seconds=0.5, body_seconds=1.0, connections=20)
HEAD = b"HTTP/1.1\r\nHost: a\r\n"


async def app(scope, receive, send):
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message["body"])
        more = message["more_body"]
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(limits):
    """The port of a server with these limits."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listening:
        config = uvicorn.Config(
            app,
            http=connection_type(limits),
            lifespan="off",
            log_level="critical",
            timeout_graceful_shutdown=0,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port():
    with serving(LIMITS) as port:
        yield port


def connected(port, content=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(content)
    return connection


def closed_after(connection, drip=b"", seconds=6.0, started=None):
    """Seconds until the server closes a connection that gets a byte now and then."""
    started = time.monotonic() if started is None else started
    connection.settimeout(0.05)
    while time.monotonic() - started < seconds:
        try:
            if connection.recv(1000) == b"":
                break
        except TimeoutError:
            pass
        except OSError:
            break
        try:
            connection.sendall(drip)
        except OSError:
            break
    else:
        return None
    return time.monotonic() - started


def answer(connection):
    """What a request is answered."""
    text = b""
    while True:
        head, _, body = text.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        if length and len(body) == int(length):
            return text
        if not (more := connection.recv(1000)):
            return text
        text += more


def test_requests_are_served_one_after_another(port):
    with connected(port) as connection:
        for length in (0, 5, 100_000):
            connection.sendall(
                b"POST / " + HEAD + b"Content-Length: %d\r\n\r\n" % length + b"x" * length
            )
            assert answer(connection).endswith(b"\r\n\r\n%d" % length)


@pytest.mark.parametrize(
    ("content", "drip", "least", "most"),
    [
        (b"", b"", 0.4, 2.0),
        (b"GET / " + HEAD, b"x", 0.4, 2.0),
        (b"POST / " + HEAD + b"Content-Length: 1000\r\n\r\n", b"x", 0.9, 3.0),
        (b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.9, 3.0),
    ],
)
def test_what_comes_slowly_is_closed(port, content, drip, least, most):
    started = time.monotonic()  # the server counts from when it accepts, and may be the first to
    with connected(port, content) as connection:
        assert least < closed_after(connection, drip, started=started) < most


def test_the_next_request_of_a_connection_must_arrive_in_time_as_well(port):
    with connected(port, b"GET / " + HEAD + b"\r\n") as connection:
        assert answer(connection).endswith(b"0")
        assert 0.4 < closed_after(connection, b"G") < 2.0


def test_a_client_is_served_whatever_the_others_hold_back():
    with serving(Limits(header_seconds=30, connections=20)) as port, ExitStack() as held:
        idle = [held.enter_context(connected(port, b"GET / " + HEAD)) for _ in range(100)]
        time.sleep(0.2)
        for _ in range(5):
            with connected(port, b"GET / " + HEAD + b"\r\n") as connection:
                assert answer(connection).startswith(b"HTTP/1.1 200")
        are_open = [closed_after(connection, seconds=0.06) is None for connection in idle]
        assert not any(are_open[:80]) and all(are_open[-10:])  # the oldest gave way


def test_where_all_connections_are_at_work_new_ones_are_refused():
    with serving(Limits(body_seconds=30, connections=3)) as port, ExitStack() as held:
        slow = b"POST / " + HEAD + b"Content-Length: 1000\r\n\r\n"
        busy = [held.enter_context(connected(port, slow)) for _ in range(3)]
        time.sleep(0.2)
        with connected(port, b"GET / " + HEAD + b"\r\n") as connection:
            assert answer(connection).startswith(b"HTTP/1.1 503")
        busy.pop().close()
        time.sleep(0.2)
        with connected(port, b"GET / " + HEAD + b"\r\n") as connection:
            assert answer(connection).startswith(b"HTTP/1.1 200")


def test_a_connection_that_is_closing_takes_no_place():
    new = SimpleNamespace(limits=Limits(connections=2), connections=[])
    for phase, has_room in ((BODY, True), (CLOSED, True), (CLOSED, True), (BODY, False)):
        new.connections.append(SimpleNamespace(phase=phase))
        assert Connection._has_room(new) == has_room
