"""The settings against real servers: each kind of identity, TLS, and refusals."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest

from mesh.connection import Connection
from mesh.errors import ConfigError, ConnectError
from mesh.localserver import LocalServer
from mesh.options import ConnectOptions


@contextmanager
def server(tmp_path: Path, config: str) -> Iterator[LocalServer]:
    with LocalServer(data=tmp_path / "nats", config=config, jetstream=False) as running:
        yield running


async def name_seen_by(running: LocalServer, **said: Any) -> str:
    """Connect with these settings; the name that the server knows the connection by."""
    said.setdefault("url", running.url)
    options = ConnectOptions.resolve(said.pop("url"), name="me", environ={}, connect_timeout=2.0, **said)
    connection = await Connection.open(options)
    try:
        await connection.round_trip()
        clients = running.monitor("connz?auth=1")["connections"]
        return str(clients[0].get("authorized_user", "") or clients[0]["name"])
    finally:
        await connection.close()


async def test_user_and_password(tmp_path: Path) -> None:
    with server(tmp_path, "authorization { users: [{user: alice, password: pw}] }") as running:
        assert await name_seen_by(running, user="alice", password="pw") == "alice"
        with pytest.raises(ConnectError, match=r"user alice.*[Aa]uthorization"):
            await name_seen_by(running, user="alice", password="wrong")


async def test_a_token_also_as_the_user_alone(tmp_path: Path) -> None:
    with server(tmp_path, "authorization { token: s3cret }") as running:
        assert await name_seen_by(running, token="s3cret") == "[REDACTED]"
        assert await name_seen_by(running, user="s3cret") == "[REDACTED]"
        with pytest.raises(ConnectError, match=r"[Aa]uthorization"):
            await name_seen_by(running)


async def test_an_nkey(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "user.nk").write_text(f"# made for the test\n{seed.decode()}\n")
    with server(tmp_path, f"authorization {{ users: [{{nkey: {public}}}] }}") as running:
        assert await name_seen_by(running, nkey=tmp_path / "user.nk") == public
        assert await name_seen_by(running, nkey=seed.decode()) == public


async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    tls = (
        f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
        f'ca_file: "{tmp_path}/ca.pem", verify: true }}'
    )
    with LocalServer(data=tmp_path / "nats", config=tls, jetstream=False) as running:
        url = running.url.replace("nats://", "tls://").replace("127.0.0.1", "localhost")
        files = {"tls_cert": tmp_path / "client.pem", "tls_key": tmp_path / "client.key", "tls_ca": tmp_path / "ca.pem"}
        assert await name_seen_by(running, url=url, **files) == "me"
        with pytest.raises(ConnectError):
            await name_seen_by(running, url=url, tls_ca=tmp_path / "ca.pem")


async def test_tls_that_was_asked_for_is_insisted_on_before_anything_is_said(tmp_path: Path) -> None:
    """nats-py would send user and password in the clear."""
    received = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"proto":1,"headers":true}\r\n')
        received.extend(await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        url = f"tls://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        with pytest.raises(ConnectError, match="TLS is asked for"):
            await Connection.open(ConnectOptions(url=url, user="u", password="hush", connect_timeout=0.5))
    assert received == b""


async def test_a_server_that_offers_tls_beside_plain_gets_tls(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    tls = f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key" }}\nallow_non_tls: true'
    with server(tmp_path, tls) as running:
        url = running.url.replace("nats://", "tls://").replace("127.0.0.1", "localhost")
        assert await name_seen_by(running, url=url, tls_ca=tmp_path / "ca.pem") == "me"
        assert await name_seen_by(running) == "me"
        with pytest.raises(ConnectError, match=r"[Cc]ertificate"):
            await name_seen_by(running, url=url)


async def test_a_link_that_ends_after_connect_is_no_connection() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"proto":1,"headers":true}\r\n')
        await reader.read(1000)
        writer.close()

    async with await asyncio.start_server(closing, "127.0.0.1", 0) as listening:
        url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        with pytest.raises(ConnectError):
            await Connection.open(ConnectOptions(url=url, connect_timeout=0.5))


async def test_a_server_that_is_not_there_is_named_without_secrets(tmp_path: Path) -> None:
    with server(tmp_path, "") as running:
        url = running.url.replace("nats://", "nats://bob:hush@")
    with pytest.raises(ConnectError) as caught:
        await Connection.open(ConnectOptions(url=url, connect_timeout=0.3))
    assert str(running.port) in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_an_unreadable_file_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await Connection.open(ConnectOptions.resolve(creds=tmp_path / "none.creds", environ={}))


def make_certificates(folder: Path) -> None:
    # From Python 3.13 on a certificate authority has to say that it may sign.
    usage = "-addext keyUsage=critical,keyCertSign"
    run(folder, f"req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca {usage}")
    for name in ("server", "client"):
        run(folder, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        (folder / f"{name}.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        run(
            folder,
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 "
            f"-extfile {name}.ext",
        )


def run(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
