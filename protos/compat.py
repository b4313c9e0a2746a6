"""Import the generated code with every end of what pyproject.toml admits: `make generate-compat`.

Makes a small virtual environment for the lowest protobuf and grpcio, one for the newest of each
major version of protobuf in between, and round-trips a message of each generated module there.

With --floors prints the lowest admitted version of each runtime dependency, as constraints for pip.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import importlib, sys, warnings
warnings.simplefilter("error")
import google.protobuf, grpc
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    if name.endswith("_grpc"):
        continue
    for kind in module.DESCRIPTOR.message_types_by_name:
        message = getattr(module, kind)()
        assert type(message).FromString(message.SerializeToString()) == message, kind
print("protobuf", google.protobuf.__version__, "grpcio", grpc.__version__, "ok")
"""


def dependencies() -> dict[str, str]:
    """Return the runtime dependencies of pyproject.toml: what is admitted, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    split = (re.match(r"([\w-]+)([^;]*)", line) for line in project["dependencies"])
    return {match[1]: match[2].strip() for match in split if match}


def floor(name: str) -> str:
    """Return the lowest admitted version of a dependency."""
    lowest = re.search(r">=([\d.]+)", dependencies()[name])
    if lowest is None:
        sys.exit(f"pyproject.toml: {name} has no floor")
    return lowest[1]


def combinations() -> list[list[str]]:
    """Return the requirements to try: floors, then the newest of each admitted major version."""
    protobuf, grpcio = floor("protobuf"), floor("grpcio")
    first = int(protobuf.split(".")[0])
    below = re.search(r"<(\d+)", dependencies()["protobuf"])
    majors = range(first, int(below[1]) if below else first + 1)
    return [
        [f"protobuf=={protobuf}", f"grpcio=={grpcio}"],
        *([f"protobuf=={major}.*", "grpcio"] for major in majors),
    ]


def modules() -> list[str]:
    """Return the import names of all generated modules."""
    found = [p for folder in ("protos", "engine") for p in sorted((ROOT / folder).glob("*_pb2*.py"))]
    return [f"{p.parent.name}.{p.stem}" for p in found]


def probe(requirements: list[str]) -> bool:
    """Install the requirements into a new environment and import everything there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        flags = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        install = [python, "-m", "pip", "install", *flags, *requirements]
        # The bare modules: what the packages around them import is not installed here.
        for package in ("protos", "engine"):
            target = Path(folder) / "src" / package
            target.mkdir(parents=True)
            for source in (ROOT / package).glob("*_pb2*.py"):
                (target / source.name).write_bytes(source.read_bytes())
        command = [python, "-c", PROBE, *modules()]
        if subprocess.run(install, check=False).returncode != 0:
            print("could not install", *requirements)
            return False
        return subprocess.run(command, cwd=Path(folder) / "src", check=False).returncode == 0


def main() -> None:
    """Try each combination and fail if one fails."""
    if "--floors" in sys.argv[1:]:
        print("\n".join(f"{name}=={floor(name)}" for name in dependencies()))
        return
    results = [probe(requirements) for requirements in combinations()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
