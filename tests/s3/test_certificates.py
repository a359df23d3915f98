"""An S3 behind a certificate of one's own: it is trusted where AWS_CA_BUNDLE names it, and else named in the error."""

import http.server
import ssl
import subprocess
import threading

import pytest

import pgqrs
from pgqrs.store.s3.bucket import S3Object

pytestmark = pytest.mark.slow


class Empty(http.server.BaseHTTPRequestHandler):
    """There is nothing here."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response_only(404)
        body = b"" if self.command == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = answer

    def log_message(self, *_):
        pass


def made(folder, names):
    """A self-signed certificate and its key."""
    options = ("-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    extensions = ("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:false")
    subprocess.run(
        ["openssl", "req", "-x509", *options, *files, *extensions], check=True, capture_output=True
    )
    return folder / "cert.pem"


@pytest.fixture
def serving(monkeypatch, tmp_path):
    servers = []

    def serving(names="DNS:localhost"):
        certificate = made(tmp_path, names)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, tmp_path / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.server_address[1]}")
        return certificate

    yield serving
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(address, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def test_one_that_nobody_vouches_for_is_named_with_the_way_out(serving):
    serving()
    with pytest.raises(pgqrs.PgqrsConnectionError) as told:
        S3Object("s3://bucket/key").fetch()
    assert "its TLS certificate is not accepted: nobody whom this machine trusts has issued it" in str(
        told.value
    )
    assert "AWS_CA_BUNDLE" in str(told.value)
    assert "AWS_SECRET_ACCESS_KEY" not in str(told.value), "the keys have nothing to do with it"


def test_a_write_says_the_same(serving):
    serving()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="its TLS certificate is not accepted"):
        S3Object("s3://bucket/key").put(b"", None)


def test_the_bundle_is_trusted(serving, monkeypatch):
    certificate = serving()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert S3Object("s3://bucket/key").fetch() is None


def test_one_for_another_name(serving, monkeypatch):
    certificate = serving("DNS:elsewhere.example")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with pytest.raises(pgqrs.PgqrsConnectionError, match="it is for another name than the endpoint's"):
        S3Object("s3://bucket/key").fetch()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_cannot_be_read(content, serving, monkeypatch, tmp_path):
    serving()
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(pgqrs.ConfigError, match=f"^AWS_CA_BUNDLE names {bundle}"):
        S3Object("s3://bucket/key")


def test_a_refused_connection_says_so(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="Connection refused"):
        S3Object(address).fetch()
