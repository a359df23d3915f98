"""An S3 for the tests: ministack, started on a free port of its own, and boto3 to look into it with other eyes than ours."""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUCKET = "pgqrs-tests"
START_S = 20.0
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class S3Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self._keys = itertools.count(1)

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator["S3Server"]:
        server = cls(free_port())
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env={**os.environ, "GATEWAY_PORT": str(server.port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "ERROR"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            server._wait(process)
            server.witness.create_bucket(Bucket=BUCKET)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=1).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                assert process.poll() is None, "ministack has ended"
                assert time.monotonic() < deadline, f"ministack does not answer after {START_S} s"
                time.sleep(0.02)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables by which pgqrs finds it, or what stands in front of it."""
        return {**KEYS, "AWS_ENDPOINT_URL": endpoint or self.endpoint}

    def new_dsn(self) -> str:
        return f"s3://{BUCKET}/{os.getpid()}/{next(self._keys)}.db"

    # The witness

    @property
    def witness(self) -> Any:
        import boto3
        from botocore.config import Config

        if not hasattr(self, "_witness"):
            self._witness = boto3.client(
                "s3",
                endpoint_url=self.endpoint,
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
                config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
            )
        return self._witness

    def body(self, dsn: str) -> bytes | None:
        """What is stored, None for nothing."""
        try:
            found: bytes = self.witness.get_object(Bucket=BUCKET, Key=key_of(dsn))["Body"].read()
        except self.witness.exceptions.NoSuchKey:
            return None
        return found

    def put(self, dsn: str, body: bytes) -> None:
        self.witness.put_object(Bucket=BUCKET, Key=key_of(dsn), Body=body)

    def delete(self, dsn: str) -> None:
        self.witness.delete_object(Bucket=BUCKET, Key=key_of(dsn))

    def download(self, dsn: str, path: Path) -> Path:
        body = self.body(dsn)
        assert body is not None, f"there is no {dsn}"
        path.write_bytes(body)
        return path


def key_of(dsn: str) -> str:
    return dsn.removeprefix(f"s3://{BUCKET}/")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
