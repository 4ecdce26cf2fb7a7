"""Finds the control plane's programs, or builds them once into a cache folder.

Order: the folder that KUBEBUILDER_ASSETS names, then the cache, then a build from the go.mod beside this file. The
build needs Go and a module proxy, no C compiler. Must not touch anything but the cache folder and Go's own caches.

Invariant: a cache folder that exists is complete. A build goes to a sibling folder and is renamed into place under a
lock, so that an interrupted build leaves nothing that looks usable and two test runs never build the same thing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
#: Program -> its main package in go.mod. `go build` names a program after its package, hence "server" for etcd.
PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5",
}
BUILT_AS = {"etcd": "server"}


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the programs. kustomize may be absent when KUBEBUILDER_ASSETS supplied all else (kubectl embeds it)."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path
    kustomize: Path | None


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no control plane on this machine, in words a person can act on."""

    reason: str


class BuildError(Exception):
    """The build ran and failed; the message ends with the compiler's last lines."""


def find(*, build: bool = True) -> Binaries | Missing:
    """Finds every program, building what is missing unless told not to. A cold build takes minutes."""
    found = _from_assets()
    required = PACKAGES.keys() - {"kustomize"}
    if not required <= found.keys():
        built = _from_cache(build=build)
        if isinstance(built, Missing):
            return built
        found = built | found
    elif "kustomize" not in found:
        cached = _from_cache(build=False)
        found = found if isinstance(cached, Missing) else cached | found
    return Binaries(
        etcd=found["etcd"],
        kube_apiserver=found["kube-apiserver"],
        kube_controller_manager=found["kube-controller-manager"],
        kubectl=found["kubectl"],
        kustomize=found.get("kustomize"),
    )


def cache_folder() -> Path:
    """Where the build of exactly these sources for this kind of machine lives."""
    root = Path(os.environ.get("NFS_PROVISIONER_CACHE") or Path.home() / ".cache" / "nfs-provisioner")
    digest = hashlib.sha256()
    for part in ((SOURCE / "go.mod").read_bytes(), (SOURCE / "go.sum").read_bytes(), " ".join(_flags()).encode()):
        digest.update(hashlib.sha256(part).digest())
    digest.update(f"{platform.system()} {platform.machine()}".encode())
    return root.absolute() / f"controlplane-{digest.hexdigest()[:16]}"


def _from_assets() -> dict[str, Path]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return {}
    paths = {name: Path(assets).absolute() / name for name in PACKAGES}
    return {name: path for name, path in paths.items() if os.access(path, os.X_OK)}


def _from_cache(*, build: bool) -> dict[str, Path] | Missing:
    folder = cache_folder()
    if not folder.is_dir():
        if not build:
            return Missing(f"the control plane is not built ({folder} does not exist)")
        if shutil.which("go") is None:
            return Missing(
                "neither does KUBEBUILDER_ASSETS name a folder with etcd, kube-apiserver, kube-controller-manager and "
                "kubectl, nor is there Go to build them"
            )
        try:
            _build(folder)
        except BuildError as error:
            return Missing(f"the control plane could not be built: {error}")
    return {name: folder / name for name in PACKAGES}


def _build(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return  # another run built it while we waited
        prefix = f".{folder.name}."
        for abandoned in folder.parent.glob(prefix + "*"):  # ours to remove: nobody else builds while we hold the lock
            shutil.rmtree(abandoned)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            _go_build(staging)
            for name, built_as in BUILT_AS.items():
                (staging / built_as).rename(staging / name)
            staging.chmod(0o755)
            staging.rename(folder)
        finally:
            if staging.exists():
                shutil.rmtree(staging)


def _go_build(target: Path) -> None:
    command = ["go", "build", *_flags(), "-o", f"{target}{os.sep}", *PACKAGES.values()]
    # Without cgo no C compiler is needed; outside flags and workspaces must not change what is built. Distributions
    # keep Go, by a file, from fetching the version that go.mod asks for; only a person's own variable counts here.
    environment = {"GOTOOLCHAIN": "auto"} | os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    ended = subprocess.run(command, cwd=SOURCE, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        raise BuildError(f"go build exited with {ended.returncode}: {ended.stderr.strip()[-2000:]}")


def _flags() -> list[str]:
    linker = ["-s", "-w"]
    version = _pinned("k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".", 2)
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        linker += [f"-X {package}.{name}={value}" for name, value in values.items()]
    linker.append(f"-X sigs.k8s.io/kustomize/api/provenance.version={_pinned('sigs.k8s.io/kustomize/kustomize/v5')}")
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", " ".join(linker)]


def _pinned(module: str) -> str:
    match = re.search(rf"^\t{re.escape(module)} (v\S+)", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(f"{SOURCE / 'go.mod'} does not pin {module}")
    return match[1]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    found = find()
    if isinstance(found, Missing):
        print(found.reason, file=sys.stderr)
        return 1
    print(found.kube_apiserver.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
