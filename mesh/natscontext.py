"""Connection contexts, in the files where the `nats` command keeps them.

Layout (natscli 0.5, jsm.go `natscontext`): `<config>/nats/context/NAME.json`, one context a file,
and `<config>/nats/context.txt` with the name of the selected one; `<config>` is
`$XDG_CONFIG_HOME`, else `~/.config`. A context named `….json` that exists as a file is read from
there, as the `nats` command does.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import ConfigError

# Connection settings that this library cannot honour. Refused, because leaving them out would
# connect somewhere else, or as somebody else, than the context says.
_UNSUPPORTED = {
    "nsc": "a creds file (write one by: nsc generate creds)",
    "socks_proxy": "no SOCKS proxy",
    "windows_cert_store": "cert, key and ca as files",
}


@dataclass(frozen=True, slots=True)
class NatsContext:
    """One context as stored; empty strings are settings that it does not make.

    `repr` leaves the secrets out.
    """

    name: str
    path: Path
    settings: Mapping[str, str]
    tls_first: bool = False

    def __repr__(self) -> str:
        return f"NatsContext(name={self.name!r}, path={str(self.path)!r})"

    def get(self, key: str) -> str:
        """The setting, "" if the context does not make it."""
        return self.settings.get(key, "")


def config_home(environ: Mapping[str, str]) -> Path:
    """The folder that holds `nats/context.txt` and `nats/context/`."""
    if xdg := environ.get("XDG_CONFIG_HOME"):
        return Path(xdg)
    return Path(environ.get("HOME") or Path.home()) / ".config"


def selected_context(environ: Mapping[str, str]) -> str:
    """The name of the context chosen by `nats context select`, "" if none is."""
    try:
        return (config_home(environ) / "nats" / "context.txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        path = config_home(environ) / "nats" / "context.txt"
        raise ConfigError(f"{path}: cannot be read: {error}", file=str(path)) from error


def known_contexts(environ: Mapping[str, str]) -> list[str]:
    """The names of all contexts, sorted."""
    return sorted(path.stem for path in (config_home(environ) / "nats" / "context").glob("*.json"))


def load_context(name: str, environ: Mapping[str, str]) -> NatsContext:
    """Read a context by name, or by path if it is the name of an existing `.json` file.

    Raises `ConfigError` when it does not exist, is not readable, or asks for what is not supported.
    """
    path = _context_path(name, environ)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(_not_found(name, path, environ), file=str(path)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: context {name!r} cannot be read: {error}", file=str(path)) from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path}: expected a JSON object", file=str(path), expected="a JSON object")
    return _checked(name, path, stored)


def read_secret(value: str, *, file: str, key: str, environ: Mapping[str, str]) -> str:
    """What a setting that is a secret stands for: `env://NAME`, `file://PATH`, `data:;base64,…`,
    else itself.

    Raises `ConfigError`, never with the secret in its text.
    """
    scheme = value.partition(":")[0].lower()
    try:
        if scheme == "env" and value[4:6] == "//":
            return _from_environment(value[6:], environ)
        if scheme == "file" and value[5:7] == "//":
            return expand(value[7:], environ).read_text(encoding="utf-8").rstrip("\r\n")
        if scheme == "data":
            return _from_data(value)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {key}: {error}", file=file, key=key) from error
    if scheme in ("op", "nsc") and "://" in value:
        raise ConfigError(
            f"{file}: {key}: {scheme}:// is not supported, use a file or env://NAME",
            file=file,
            key=key,
        )
    return value


def is_reference(value: str) -> bool:
    """Whether a `creds` or `nkey` setting stands for text kept elsewhere, rather than being a
    path."""
    return re.match(r"(?i)(env|op|nsc)://|data:", value) is not None


def expand(path: str, environ: Mapping[str, str]) -> Path:
    """A path with `$VARIABLE` and a leading `~` replaced, as in the context files of the `nats`
    command."""
    filled = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: environ.get(m[1] or m[2], ""), path)
    if filled == "~" or filled.startswith("~/"):
        return Path(environ.get("HOME") or Path.home()) / filled[2:]
    return Path(filled)


def _context_path(name: str, environ: Mapping[str, str]) -> Path:
    if name.endswith(".json") and Path(name).is_file():
        return Path(name)
    if not name or ".." in name or "/" in name or "\\" in name or "\0" in name:
        raise ConfigError(
            f"{name!r} is not the name of a context: expected a name without '/', '\\' and '..'",
            key="context",
        )
    return config_home(environ) / "nats" / "context" / f"{name}.json"


def _not_found(name: str, path: Path, environ: Mapping[str, str]) -> str:
    known = known_contexts(environ)
    there = (
        f"there are: {', '.join(known)}" if known else "there is none; make one by: nats context add NAME --server URL"
    )
    return f"no NATS context {name!r} ({path} does not exist); {there}"


def _checked(name: str, path: Path, stored: dict[str, object]) -> NatsContext:
    for key, instead in _UNSUPPORTED.items():
        if stored.get(key):
            raise ConfigError(
                f"{path}: {key} is not supported, expected {instead}",
                file=str(path),
                key=key,
                expected=instead,
            )
    settings = {key: value for key, value in stored.items() if isinstance(value, str)}
    return NatsContext(name=name, path=path, settings=settings, tls_first=stored.get("tls_first") is True)


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "")
    if not value:
        raise ValueError(f"the environment variable {name} is not set")
    return value


def _from_data(value: str) -> str:
    header, comma, body = value[5:].partition(",")
    if not comma or "base64" not in (part.strip() for part in header.split(";")):
        raise ValueError("expected data:;base64,…")
    try:
        return base64.b64decode(body, validate=True).decode("utf-8").rstrip("\r\n")
    except binascii.Error:
        raise ValueError("the base64 text is damaged") from None
