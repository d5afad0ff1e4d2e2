#!/usr/bin/env python3
"""Prints an identity signed by a CA of plain openssl, as one JSON object (docs/providers/exec.md).

    openssl-ca.py CA_DIRECTORY TRUST_DOMAIN

The same as openssl-ca.sh for those who prefer Python; it needs the standard library and openssl.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"openssl {arguments[0]}: {done.stderr.strip()}")


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} CA_DIRECTORY TRUST_DOMAIN")
    ca, domain = Path(sys.argv[1]), sys.argv[2]
    name = os.environ["AH_NAME"]
    # A name becomes a path segment of a SPIFFE ID; what cannot is refused here and not signed.
    if not re.fullmatch(r"[a-zA-Z0-9._-]+", name) or name in (".", ".."):
        sys.exit(f"{name!r} cannot be a part of a SPIFFE ID")
    if os.environ["AH_ROLE"] == "access-point":
        usage = "serverAuth"
        names = f"URI:spiffe://{domain}/ah/serve,DNS:localhost,DNS:{name},IP:127.0.0.1"
    else:
        usage = "clientAuth"
        names = f"URI:spiffe://{domain}/ah/agent/{name}"

    # TemporaryDirectory is for this user alone, and gone afterwards.
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", str(work / "key.pem"), "-out", str(work / "request.pem"),
        )
        (work / "extensions").write_text(
            f"subjectAltName = {names}\n"
            "basicConstraints = critical, CA:FALSE\n"
            "keyUsage = critical, digitalSignature\n"
            f"extendedKeyUsage = {usage}\n"
        )
        openssl(
            "x509", "-req", "-in", str(work / "request.pem"), "-CA", str(ca / "ca.pem"),
            "-CAkey", str(ca / "ca-key.pem"), "-set_serial", hex(secrets.randbits(127)), "-days", "1",
            "-extfile", str(work / "extensions"), "-out", str(work / "cert.pem"),
        )
        identity = {
            "version": 1,
            "certificate_chain": (work / "cert.pem").read_text(),
            "private_key": (work / "key.pem").read_text(),
            "ca_bundle": (ca / "ca.pem").read_text(),
        }
    json.dump(identity, sys.stdout)


main()
