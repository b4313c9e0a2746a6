"""Where the server is and who we are: which place wins, and what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ConfigError
from mesh.options import ConnectOptions

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
CREDS = (
    f"-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n\n"
    f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "nats" / "context").mkdir(parents=True)
    return tmp_path


def write_context(home: Path, name: str, *, select: bool = False, **settings: Any) -> None:
    (home / "nats" / "context" / f"{name}.json").write_text(json.dumps(settings))
    if select:
        (home / "nats" / "context.txt").write_text(f"{name}\n")


def resolve(home: Path, url: str | None = None, *, env: dict[str, str] | None = None, **said: Any) -> ConnectOptions:
    return ConnectOptions.resolve(url, environ={"XDG_CONFIG_HOME": str(home), **(env or {})}, **said)


def test_without_anything_it_is_the_local_default(home: Path) -> None:
    options = resolve(home)
    assert options.servers == ["nats://127.0.0.1:4222"]
    assert options.nats_kwargs() == {"servers": options.servers, "name": "nats-mesh", "inbox_prefix": "_INBOX"}


def test_a_flag_wins_over_the_environment_and_that_over_the_selected_context(home: Path) -> None:
    write_context(home, "chosen", select=True, url="nats://context:1")
    assert resolve(home).url == "nats://context:1"
    assert resolve(home, env={"NATS_URL": "nats://env:1"}).url == "nats://env:1"
    assert resolve(home, "nats://flag:1", env={"NATS_URL": "nats://env:1"}).url == "nats://flag:1"


def test_a_context_named_by_flag_wins_over_the_environment(home: Path) -> None:
    write_context(home, "mine", url="nats://context:1", inbox_prefix="_INBOX_a")
    options = resolve(home, context="mine", env={"NATS_URL": "nats://env:1"})
    assert (options.url, options.inbox_prefix, options.context) == ("nats://context:1", "_INBOX_a", "mine")


def test_a_context_named_by_the_environment_wins_over_the_selected_one(home: Path) -> None:
    write_context(home, "selected", select=True, url="nats://selected:1")
    write_context(home, "named", url="nats://named:1")
    assert resolve(home, env={"NATS_CONTEXT": "named"}).url == "nats://named:1"


def test_credentials_of_the_selected_context_do_not_go_to_a_server_named_otherwise(home: Path) -> None:
    write_context(home, "chosen", select=True, url="nats://context:1", user="alice", password="secret")
    assert resolve(home).nats_kwargs()["user"] == "alice"
    assert "user" not in resolve(home, "nats://elsewhere:1").nats_kwargs()


def test_the_identity_comes_from_one_place(home: Path) -> None:
    write_context(home, "mine", url="nats://context:1", user="alice", password="secret")
    kwargs = resolve(home, context="mine", token="t").nats_kwargs()
    assert kwargs["token"] == "t"
    assert "user" not in kwargs
    assert "password" not in kwargs


def test_a_password_of_another_user_is_not_used(home: Path) -> None:
    kwargs = resolve(home, user="bob", env={"NATS_USER": "alice", "NATS_PASSWORD": "secret"}).nats_kwargs()
    assert kwargs["token"] == "bob"
    assert "password" not in kwargs


def test_user_and_password_may_come_from_two_places(home: Path) -> None:
    kwargs = resolve(home, password="p", env={"NATS_USER": "alice"}).nats_kwargs()
    assert (kwargs["user"], kwargs["password"]) == ("alice", "p")


def test_a_user_in_the_url_keeps_other_identities_out(home: Path) -> None:
    options = resolve(home, "nats://bob:pw@host:1", env={"NATS_TOKEN": "t"})
    assert options.nats_kwargs() == {"servers": ["nats://bob:pw@host:1"], "name": "nats-mesh", "inbox_prefix": "_INBOX"}


def test_a_user_without_a_password_is_a_token(home: Path) -> None:
    assert resolve(home, user="s3cret").nats_kwargs()["token"] == "s3cret"


def test_two_identities_in_one_place_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="too many identities"):
        resolve(home, token="t", nkey="x.nk")


def test_the_example_context_of_the_nats_command_is_read_in_full(home: Path, tmp_path: Path) -> None:
    """Written by `nats context add` 0.5, all keys."""
    creds = tmp_path / "user.creds"
    creds.write_text(CREDS)
    stored: dict[str, Any] = {
        "description": "d", "url": "tls://h:1,tls://h:2", "socks_proxy": "", "token": "", "user": "", "password": "",
        "creds": "$FOLDER/user.creds", "nkey": "", "cert": "", "key": "", "ca": "", "nsc": "", "jetstream_domain": "",
        "jetstream_api_prefix": "", "jetstream_event_prefix": "", "inbox_prefix": "_INBOX_x", "user_jwt": "",
        "user_seed": "", "color_scheme": "", "tls_first": True, "windows_cert_store": "", "windows_cert_match_by": "",
        "windows_cert_match": "", "windows_ca_certs_match": None,
    }  # fmt: skip
    write_context(home, "full", **stored)
    options = resolve(home, context="full", env={"FOLDER": str(tmp_path)})
    assert options.servers == ["tls://h:1", "tls://h:2"]
    assert options.creds == str(creds)
    assert options.tls_first
    assert options.inbox_prefix == "_INBOX_x"


def test_a_context_may_be_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"url": "nats://file:1"}')
    assert resolve(home, context=str(tmp_path / "c.json")).url == "nats://file:1"


def test_a_missing_context_names_those_that_exist(home: Path) -> None:
    write_context(home, "one")
    with pytest.raises(ConfigError, match="no NATS context 'two'.*there are: one"):
        resolve(home, context="two")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\\b"])
def test_a_context_name_cannot_leave_its_folder(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a context"):
        resolve(home, context=name)


@pytest.mark.parametrize(("content", "said"), [("{", "cannot be read"), ("[]", "expected a JSON object")])
def test_a_damaged_context_is_named(home: Path, content: str, said: str) -> None:
    (home / "nats" / "context" / "bad.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        resolve(home, context="bad")


@pytest.mark.parametrize("key", ["nsc", "socks_proxy", "windows_cert_store"])
def test_a_context_that_asks_for_what_we_cannot_do_is_refused(home: Path, key: str) -> None:
    settings: dict[str, Any] = {key: "x"}
    write_context(home, "mine", **settings)
    with pytest.raises(ConfigError, match=key):
        resolve(home, context="mine")


def test_secrets_may_be_kept_elsewhere(home: Path, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("from file\n")
    write_context(home, "env", user="a", password="env://PW")
    write_context(home, "file", user="a", password=f"file://{tmp_path}/pw")
    write_context(home, "data", token="data:;base64,dG9rZW4=")
    assert resolve(home, context="env", env={"PW": "from env"}).password == "from env"
    assert resolve(home, context="file").password == "from file"
    assert resolve(home, context="data").token == "token"
    with pytest.raises(ConfigError, match="PW is not set"):
        resolve(home, context="env")


def test_a_creds_file_that_is_none_is_refused(home: Path, tmp_path: Path) -> None:
    """nats-py would read such a file for ever."""
    (tmp_path / "x.creds").write_text("nothing\n")
    with pytest.raises(ConfigError, match="is not a creds file"):
        resolve(home, creds=tmp_path / "x.creds").nats_kwargs()
    with pytest.raises(ConfigError, match="does not exist"):
        resolve(home, creds=tmp_path / "y.creds").nats_kwargs()


def test_a_file_without_a_seed_is_no_nkey(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nk").write_text("UABC\n")
    with pytest.raises(ConfigError, match="holds no seed"):
        resolve(home, nkey=tmp_path / "x.nk").nats_kwargs()


@pytest.mark.parametrize("url", ["http://h:1", "nats://", "nats://h:0x", "nats://h:99999", "nats://a b:1"])
def test_what_is_no_url_of_a_server_is_refused(home: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL"):
        resolve(home, url)


def test_a_url_without_scheme_and_a_list_are_taken(home: Path) -> None:
    assert resolve(home, "h:1, tls://h:2").servers == ["nats://h:1", "tls://h:2"]


@pytest.mark.parametrize("prefix", ["_INBOX.", "a..b", "a.*", "a.>", "a b"])
def test_what_is_no_inbox_prefix_is_refused(home: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="is not an inbox prefix"):
        resolve(home, inbox_prefix=prefix)


def test_no_secret_is_shown(home: Path) -> None:
    write_context(home, "mine", url="nats://u:hush@h:1", user="alice", password="hush")
    for options in (
        resolve(home, context="mine"),
        resolve(home, token="hush"),
        resolve(home, user="hush"),
        resolve(home, nkey=SEED),
        resolve(home, creds=CREDS),
    ):
        shown = options.describe() + repr(options)
        assert "hush" not in shown
        assert SEED not in shown


def test_a_certificate_needs_its_key(home: Path) -> None:
    with pytest.raises(ConfigError, match="tls_cert without tls_key"):
        resolve(home, tls_cert="c.pem")


def test_tls_files_that_are_none_are_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="TLS files are not usable"):
        resolve(home, tls_ca=tmp_path / "ca.pem").nats_kwargs()
    with pytest.raises(ConfigError, match="tls_ca: .* does not exist"):
        resolve(home, tls_ca=tmp_path / "none.pem").nats_kwargs()
