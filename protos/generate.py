"""Generate the Python code of protos/*.proto: `make generate`, `make generate-check`.

The path under which protoc sees a file decides the Python import, its `package` decides the NATS
subject. The reference services are seen as protos/NAME.proto and lie beside their source, imported
as `protos.NAME_pb2`. The engine's own durable.proto is seen as engine/durable.proto, so that it is
installed with the package and imported as `engine.durable_pb2`, whatever else is on the path.
tests/mesh/protos/*.proto are seen where they lie, for tests alone.

Runs in a virtual environment that holds protos/generator.txt and nothing else.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
ENGINE_OWN = "durable"
TESTS = "tests/mesh/protos"


def generate(out: Path) -> None:
    """Write all generated files beneath `out`, laid out as in the repository."""
    services = sorted(p.stem for p in PROTOS.glob("*.proto") if p.stem != ENGINE_OWN)
    generate_services(out, "protos", services)
    generate_services(out, TESTS, sorted(p.stem for p in (ROOT / TESTS).glob("*.proto")))
    if (PROTOS / f"{ENGINE_OWN}.proto").exists():
        (out / "engine").mkdir(exist_ok=True)
        protoc(
            f"-Iengine={PROTOS}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"engine/{ENGINE_OWN}.proto",
        )
        shutil.copyfile(PROTOS / f"{ENGINE_OWN}.proto", out / "engine" / f"{ENGINE_OWN}.proto")


def generate_services(out: Path, folder: str, names: list[str]) -> None:
    """Messages, stubs and servicers of the files of one folder."""
    (out / folder).mkdir(parents=True, exist_ok=True)
    protoc(
        f"-I{folder}={ROOT / folder}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
        *(f"{folder}/{name}.proto" for name in names),
    )


def protoc(*arguments: str) -> None:
    """Run the pinned protoc; its plug-ins are found beside this interpreter."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    if subprocess.run(command, env=os.environ | {"PATH": path}, check=False).returncode != 0:
        sys.exit("protoc failed: see above")


def is_generated(path: Path) -> bool:
    """Say whether this file is written by `generate` alone."""
    return path.name == f"{ENGINE_OWN}.proto" or path.stem.endswith(("_pb2", "_pb2_grpc"))


def differences(fresh: Path) -> list[str]:
    """Compare the generated files of the repository with freshly generated ones."""
    found: list[str] = []
    for folder in ("protos", "engine", TESTS):
        here = {p.name for p in (ROOT / folder).glob("*") if is_generated(p)}
        there = {p.name for p in (fresh / folder).glob("*")}
        if folder == "protos":
            here.discard(f"{ENGINE_OWN}.proto")
        found += [f"{folder}/{name}: not generated" for name in sorted(there - here)]
        found += [f"{folder}/{name}: has no source" for name in sorted(here - there)]
        found += [
            f"{folder}/{name}: differs"
            for name in sorted(here & there)
            if not filecmp.cmp(ROOT / folder / name, fresh / folder / name, shallow=False)
        ]
    return found


def main() -> None:
    """Generate in place, or with --check compare and change nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="fail on a difference, write nothing")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        found = differences(Path(folder))
    if found:
        sys.exit("\n".join([*found, "run `make generate` and commit the result"]))
    print("generated code is up to date")


if __name__ == "__main__":
    main()
