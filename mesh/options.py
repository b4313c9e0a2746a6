"""Where the server is and who we are: flags, environment, context files, in this order.

The same rules for `mesh.connect`, `engine.Client.connect` and every command: what the caller says,
else `NATS_URL`, `NATS_CREDS` and so on, else the context (`NATS_CONTEXT`, or the one selected by
`nats context select`), else `nats://127.0.0.1:4222`. A context that the caller names comes before
the environment. Each setting is looked for by itself, but the proof of who we are comes from one
place only: a password of the context is not sent along with a user of the caller.
"""

import importlib.util
import os
import ssl
from collections import UserString
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mesh.errors import ConfigError
from mesh.natscontext import (
    NatsContext,
    expand,
    is_reference,
    load_context,
    read_secret,
    selected_context,
)

DEFAULT_URL = "nats://127.0.0.1:4222"
DEFAULT_CONNECT_TIMEOUT = 5.0
"""Seconds."""
DEFAULT_INBOX_PREFIX = "_INBOX"

_SCHEMES = ("nats", "tls", "ws", "wss")
# Our name of a setting, its environment variable (those of the `nats` command) and its key in a
# context file.
_SETTINGS = {
    "url": ("NATS_URL", "url"),
    "creds": ("NATS_CREDS", "creds"),
    "nkey": ("NATS_NKEY", "nkey"),
    "user": ("NATS_USER", "user"),
    "password": ("NATS_PASSWORD", "password"),
    "token": ("NATS_TOKEN", "token"),
    "tls_cert": ("NATS_CERT", "cert"),
    "tls_key": ("NATS_KEY", "key"),
    "tls_ca": ("NATS_CA", "ca"),
    "inbox_prefix": ("NATS_INBOX_PREFIX", "inbox_prefix"),
}
_JWT_SETTINGS = {"user_jwt": "user_jwt", "user_seed": "user_seed"}  # context files only
_IDENTITY = {"creds", "nkey", "user", "password", "token", "user_jwt", "user_seed"}


@dataclass(frozen=True, slots=True, repr=False)
class ConnectOptions:
    """Everything that opens a connection.

    `resolve` completes what it is given from environment and contexts; the constructor does not.

    `repr` and `describe` leave secrets out.
    """

    url: str = DEFAULT_URL
    """One server or several, separated by commas."""
    context: str = ""
    """Name of the context that was read, "" for none."""
    creds: str = ""
    """Path of a creds file, or its text."""
    nkey: str = ""
    """Path of a file with the seed of an nkey, or the seed."""
    user: str = ""
    password: str | None = None
    token: str = ""
    tls: ssl.SSLContext | None = None
    """Comes before `tls_cert`, `tls_key` and `tls_ca`."""
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    tls_first: bool = False
    """Handshake before the server's greeting."""
    inbox_prefix: str = DEFAULT_INBOX_PREFIX
    """Beneath it lie the subjects of all answers; per user under least privilege."""
    name: str = "nats-mesh"
    """What the server's monitoring shows."""
    connect_timeout: float | None = DEFAULT_CONNECT_TIMEOUT
    """Seconds to keep trying for the first connection; None for ever."""

    def __post_init__(self) -> None:
        if not self.servers:
            raise ConfigError(f"no server in {self.url!r}: expected a URL as nats://127.0.0.1:4222", key="url")
        for server in self.servers:
            _check_url(server)
        _check_inbox_prefix(self.inbox_prefix)
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(f"{given} without {missing}: a client certificate needs both", key=missing)

    @classmethod
    def resolve(
        cls,
        url: str | Sequence[str] | None = None,
        *,
        context: str | None = None,
        creds: str | os.PathLike[str] | None = None,
        nkey: str | os.PathLike[str] | None = None,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        inbox_prefix: str | None = None,
        name: str | None = None,
        connect_timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """The settings of the caller, completed from environment and contexts (see the module).

        Raises `ConfigError` for a context that does not exist, a file that cannot be read, a URL
        that is none.
        """
        environ = os.environ if environ is None else environ
        said = {
            "url": _joined(url),
            "creds": _path(creds),
            "nkey": _path(nkey),
            "user": user,
            "password": password,
            "token": token,
            "tls_cert": _path(tls_cert),
            "tls_key": _path(tls_key),
            "tls_ca": _path(tls_ca),
            "inbox_prefix": inbox_prefix,
        }
        chosen, used = _merge(_places(said, context, environ), environ)
        return cls(
            **chosen,
            context=used.name if used else "",
            tls=tls,
            tls_first=used.tls_first if used else False,
            connect_timeout=connect_timeout,
            **({"name": name} if name else {}),
        )

    def __repr__(self) -> str:
        return f"ConnectOptions({self.describe()})"

    @property
    def servers(self) -> list[str]:
        """The URLs, each with a scheme."""
        return [part if "://" in part else f"nats://{part}" for part in map(str.strip, self.url.split(",")) if part]

    def describe(self) -> str:
        """URL, context and kind of identity, for logs and errors; no secret."""
        facts = [f"context {self.context}"] if self.context else []
        if self.user and self.password is not None:
            facts.append(f"user {self.user}")
        facts += [f"{kind} {_shown(value)}" for kind, value in (("creds", self.creds), ("nkey", self.nkey)) if value]
        if self.token or (self.user and self.password is None):
            facts.append("token")
        servers = ", ".join(map(_without_userinfo, self.servers))
        return f"{servers} ({', '.join(facts)})" if facts else servers

    def nats_kwargs(self) -> dict[str, Any]:
        """Arguments of `nats.aio.client.Client.connect`, without those about time and reconnecting.

        Reads the files. Raises `ConfigError` for one that is missing, unreadable or not what it
        should be.
        """
        kwargs: dict[str, Any] = {
            "servers": self.servers,
            "name": self.name,
            "inbox_prefix": self.inbox_prefix,
        }
        kwargs |= self._identity()
        if context := self._tls_context():
            kwargs["tls"] = context
        if self.tls_first:
            kwargs["tls_handshake_first"] = True
        return kwargs

    def with_timeout(self, connect_timeout: float | None) -> Self:
        """The same with another `connect_timeout`."""
        return replace(self, connect_timeout=connect_timeout)

    def _identity(self) -> dict[str, Any]:
        if self.creds:
            return {"user_credentials": _checked_creds(self.creds)}
        if self.nkey:
            return {"nkeys_seed_str": _checked_seed(self.nkey)}
        if self.user and self.password is not None:
            return {"user": self.user, "password": self.password}
        # A user without a password is a token, as for the `nats` command.
        return {"token": self.token or self.user} if self.token or self.user else {}

    def _tls_context(self) -> ssl.SSLContext | None:
        if self.tls is not None or not (self.tls_ca or self.tls_cert):
            return self.tls
        for key in ("tls_ca", "tls_cert", "tls_key"):
            if path := getattr(self, key):
                _read(path, key)
        try:
            context = ssl.create_default_context(cafile=self.tls_ca or None)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.tls_ca, self.tls_cert, self.tls_key)))
            raise ConfigError(f"TLS files are not usable ({files}): {error}", file=files) from error
        return context


@dataclass(frozen=True, slots=True)
class _Place:
    """One place where settings are looked for, and how it is named in errors."""

    label: str
    settings: Mapping[str, str]
    context: NatsContext | None = None


def _places(said: Mapping[str, str | None], context: str | None, environ: Mapping[str, str]) -> list[_Place]:
    """Where to look, the first place first."""
    places = [_Place("argument", {key: value for key, value in said.items() if value is not None})]
    if context:
        places.append(_context_place(load_context(context, environ)))
    places.append(
        _Place(
            "environment",
            {key: environ[var] for key, (var, _) in _SETTINGS.items() if environ.get(var)},
        )
    )
    if not context and (name := environ.get("NATS_CONTEXT") or _selected(places, environ)):
        places.append(_context_place(load_context(name, environ)))
    return places


def _selected(places: Iterable[_Place], environ: Mapping[str, str]) -> str:
    """The selected context; "" where a URL is said or in the environment.

    Somebody who names a server does not expect that the credentials of whatever was selected last
    go to it. (The `nats` command mixes them.)
    """
    return "" if any("url" in place.settings for place in places) else selected_context(environ)


def _context_place(context: NatsContext) -> _Place:
    keys = {ours: theirs for ours, (_, theirs) in _SETTINGS.items()} | _JWT_SETTINGS
    settings = {ours: value for ours, theirs in keys.items() if (value := context.get(theirs))}
    if "user" in settings:
        settings.setdefault("password", "")
    return _Place(str(context.path), settings, context)


def _merge(places: list[_Place], environ: Mapping[str, str]) -> tuple[dict[str, Any], NatsContext | None]:
    chosen: dict[str, Any] = {}
    for place in places:
        for key, value in place.settings.items():
            if key not in _IDENTITY and key not in chosen:
                chosen[key] = str(expand(value, environ)) if place.context and key.startswith("tls_") else value
    chosen |= _identity_of(places, environ)
    return chosen, next((place.context for place in places if place.context), None)


def _identity_of(places: list[_Place], environ: Mapping[str, str]) -> dict[str, Any]:
    """The identity from the first place that has one; a URL with a user in it counts as one."""
    for index, place in enumerate(places):
        own = {key: value for key, value in place.settings.items() if key in _IDENTITY}
        if "password" in own and "user" not in own:
            own |= _user_elsewhere(places[index + 1 :])
        elif "user" in own and "password" not in own:
            own |= _password_of(own["user"], places[index + 1 :])
        if own:
            return _one_identity(own, place, environ)
        if "@" in place.settings.get("url", ""):
            return {}
    return {}


def _user_elsewhere(places: list[_Place]) -> dict[str, str]:
    return next(({"user": place.settings["user"]} for place in places if "user" in place.settings), {})


def _password_of(user: str, places: list[_Place]) -> dict[str, str]:
    """The password that a later place has for the same user, or without naming any."""
    for place in places:
        if "password" in place.settings and place.settings.get("user", user) == user:
            return {"password": place.settings["password"]}
    return {}


def _one_identity(own: dict[str, str], place: _Place, environ: Mapping[str, str]) -> dict[str, Any]:
    def secret(key: str) -> str:
        return read_secret(own[key], file=place.label, key=key, environ=environ)

    def file(key: str) -> str:
        if is_reference(own[key]):
            return secret(key)
        return str(expand(own[key].removeprefix("file://"), environ)) if place.context else own[key]

    kinds = [kind for kind in ("user", "creds", "nkey", "user_jwt", "token") if own.get(kind)]
    if not place.context and len(kinds) > 1:
        raise ConfigError(
            f"too many identities ({', '.join(kinds)}): expected one",
            key=kinds[1],
            expected="one identity",
        )
    match kinds[0] if kinds else "":
        case "user" if "password" in own:
            return {"user": own["user"], "password": secret("password")}
        case "user":
            return {"token": own["user"]}
        case "creds" | "nkey" as kind:
            return {kind: file(kind)}
        case "user_jwt":
            return {"creds": _creds_text(secret("user_jwt"), secret("user_seed") if own.get("user_seed") else "")}
        case "token":
            return {"token": secret("token")}
    raise ConfigError(f"{place.label}: a password without a user", key="user", expected="a user")


def _creds_text(jwt: str, seed: str) -> str:
    if not seed:
        raise ConfigError("user_jwt without user_seed is not supported", key="user_seed", expected="a user seed")
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _checked_creds(creds: str) -> str | UserString:
    inline = "-----BEGIN" in creds
    text = creds if inline else _read(creds, "creds")
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:  # nats-py would read on for ever
        shown = _shown(creds)
        raise ConfigError(
            f"creds: {shown} is not a creds file: no user JWT and nkey seed in it",
            file=shown,
            key="creds",
        )
    _need_nkeys()
    return UserString(creds) if inline else creds


def _checked_seed(nkey: str) -> str:
    text = nkey if _is_seed(nkey) else _read(nkey, "nkey")
    seed = next((line.strip() for line in text.splitlines() if _is_seed(line.strip())), "")
    if not seed:
        raise ConfigError(
            f"nkey: {nkey} holds no seed of a user nkey (a line that begins with SU)",
            file=nkey,
            key="nkey",
        )
    _need_nkeys()
    return seed


def _is_seed(text: str) -> bool:
    return text.startswith("SU") and len(text) == 58 and text.isalnum()


def _need_nkeys() -> None:
    if importlib.util.find_spec("nkeys") is None:
        raise ConfigError(
            "creds and nkeys need the package nkeys; install it by: pip install 'nats-mesh[nkeys]'", key="creds"
        )


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{key}: {path} does not exist", file=path, key=key) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error}", file=path, key=key) from error


def _check_url(server: str) -> None:
    try:
        parts = urlsplit(server)
        valid = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in server):
        shown = _without_userinfo(server)
        raise ConfigError(f"{shown!r} is not the URL of a NATS server: expected nats://HOST:PORT", key="url")


def _check_inbox_prefix(prefix: str) -> None:
    tokens = prefix.split(".")
    if not all(tokens) or any(c.isspace() or c in "*>" for c in prefix):
        raise ConfigError(
            f"{prefix!r} is not an inbox prefix: expected a subject without wildcards",
            key="inbox_prefix",
        )


def _without_userinfo(server: str) -> str:
    scheme, separator, rest = server.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _shown(value: str) -> str:
    return "given as text" if "\n" in value or _is_seed(value) else value


def _joined(url: str | Sequence[str] | None) -> str | None:
    return url if url is None or isinstance(url, str) else ",".join(url)


def _path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)
