"""Certificates for servers at 127.0.0.1, made by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.skips import needs_package


@dataclass(frozen=True)
class Certificates:
    """PEM files. `server`: the certificate and then its key; `other_ca` has signed nothing that a server has."""

    ca: Path
    certificate: Path
    key: Path
    server: Path
    other_ca: Path


def make(folder: Path) -> Certificates:
    if shutil.which("openssl") is None:
        needs_package("openssl")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "rsa:2048", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt")
    both = (folder / "server.crt").read_text() + (folder / "server.key").read_text()
    (folder / "server.pem").write_text(both)
    files = (folder / name for name in ("ca.pem", "server.crt", "server.key", "server.pem", "other.pem"))
    return Certificates(*files)
