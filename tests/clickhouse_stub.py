"""A stand-in for a ClickHouse server: HTTP on loopback in front of chDB, which runs the statements.

What clickhouse-connect sends and how it reads the answer are tested with it; logins, several
databases, several servers and the limits of a real one are not.
"""

import base64
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "reader", "p@ss:word/"


@contextmanager
def served(connection):
    """The port of a server that runs statements by an `InProcess`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers["Authorization"] != f"Basic {login}":
                return self.answer(403, b"Code: 516. DB::Exception: Authentication failed")
            given = parse_qs(urlsplit(self.path).query)
            query = given.get("query", [""])[0]
            if len(query or body) > int(given.get("max_query_size", [256 << 10])[0]):
                return self.answer(400, b"Code: 62. DB::Exception: Max query size exceeded")
            try:
                self.answer(200, answered(connection, query, body))
            except RuntimeError as error:
                self.answer(500, str(error).encode())

        do_GET = do_POST  # noqa: N815 (a ping)

        def answer(self, status, content):
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in (content, b"") if content else (b"",):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answered(connection, query, body):
    """The bytes that a statement gives; the body is the statement, or what it inserts."""
    if not query:
        query, body = body.decode(), b""
    query, _, output = query.rstrip().rstrip(";").rpartition(" FORMAT ")
    if not query:
        query, output = output, "TabSeparated"
    if not body:
        return run(connection, query, output)
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        run(connection, f"{query} SELECT * FROM file('{file.name}', '{output}')", "Null")
    return b""


def run(connection, query, output):
    connection.run("SELECT 1")  # opens the folder
    return connection._session.query(query, output).bytes()
