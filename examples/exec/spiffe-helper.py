#!/usr/bin/env python3
"""Prints an identity that spiffe-helper keeps in files, as one JSON object (docs/providers/exec.md).

    spiffe-helper.py DIRECTORY

DIRECTORY is spiffe-helper's cert_dir with its usual names: svid.pem, svid_key.pem, svid_bundle.pem. For programs that
can reach the Workload API itself, the spiffe identity needs no helper.

spiffe-helper writes three files one after the other. They are read again until nothing changes in between, so that
a key is never shown with the certificate before it.
"""

import json
import sys
import time
from pathlib import Path

NAMES = {
    "certificate_chain": "svid.pem",
    "private_key": "svid_key.pem",
    "ca_bundle": "svid_bundle.pem",
}


def read(directory):
    return {field: (directory / name).read_text() for field, name in NAMES.items()}


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    directory = Path(sys.argv[1])
    try:
        files = read(directory)
        for _ in range(50):
            time.sleep(0.1)
            again = read(directory)
            if files == again:
                break
            files = again
        else:
            sys.exit(f"the files in {directory} do not come to rest")
    except OSError as error:
        sys.exit(f"{error}: see whether spiffe-helper runs, and as which user")
    json.dump({"version": 1, **files}, sys.stdout)


main()
