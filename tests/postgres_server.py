"""PostgreSQL with pgvector, as PyPI's pgserver brings it, run for a test."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from free_port import free_port

PASSWORD = "pgpw-SECRET-0123"  # noqa: S105  nobody's


class PostgresServer:
    """A server over a folder of its own, at a port of this machine.

    The user postgres has the password `PASSWORD`, which every connection needs.
    """

    def __init__(self, folder: Path) -> None:
        spec = find_spec("pgserver")
        if spec is None or os.name == "nt":
            pytest.skip("pgserver is not installed")
        pytest.importorskip("psycopg")
        (package,) = map(Path, spec.submodule_search_locations or ())
        self.programs, self.folder, self.port = package / "pginstall" / "bin", folder / "data", free_port()
        # PostgreSQL refuses to run as root.
        self.user: dict[str, Any] = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
        secret = folder / "password"
        secret.write_text(PASSWORD)
        self.folder.mkdir()
        if self.user:
            for each in (folder, secret, self.folder):
                os.chown(each, 65534, 65534)
        self._run("initdb", "-A", "scram-sha-256", "-U", "postgres", f"--pwfile={secret}", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command: list[Any] = [self.programs / program, "-D", self.folder, *arguments]
        done = subprocess.run(command, cwd="/", text=True, capture_output=True, check=False, **self.user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        deadline = time.monotonic() + 60
        self._launch()
        while True:
            try:
                psycopg.connect(self.conninfo, password=PASSWORD).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder.parent / "log").read_text()
                time.sleep(0.02)
            if self.process.poll() is not None:  # a server that was killed has not let go of its memory yet
                self._launch()

    def _launch(self) -> None:
        command: list[Any] = [self.programs / "postgres", "-D", self.folder, "-p", str(self.port)]
        # What is written outlives the server's processes without being synced too.
        for setting in (
            *("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=64MB", "fsync=off"),
        ):
            command += ["-c", setting]
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **self.user)

    def kill(self) -> None:
        """Kill all its processes, in the midst of whatever they do."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        for each in (self.process, *children):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def environment(self, database: str) -> dict[str, str]:
        """Make a database with pgvector; return the environment in which libpq finds it."""
        self.execute(f"CREATE DATABASE {database}")
        self.execute("CREATE EXTENSION vector", database)
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGDATABASE": database}
        return {**place, "PGUSER": "postgres", "PGPASSWORD": PASSWORD}

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement as the database's owner."""
        import psycopg

        with psycopg.connect(
            self.conninfo, dbname=database, password=PASSWORD, autocommit=True
        ) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Serve a new folder; give the server, whose database has pgvector."""
    # Not below pytest's own, which nobody else may enter.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        try:
            server.execute("CREATE EXTENSION vector")
            yield server
        finally:
            server.kill()
