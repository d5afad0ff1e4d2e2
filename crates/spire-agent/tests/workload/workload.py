"""A workload built on py-spiffe: fetches an X509-SVID and sees it rotate, fetches and validates a JWT-SVID, and
speaks mTLS with itself. Usage: workload.py SOCKET FOLDER. Each line of its output is one thing that worked."""

import hashlib
import socket
import ssl
import sys
import threading
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from spiffe import JwtSource, JwtSvid, WorkloadApiClient, X509Source

ENDPOINT, FOLDER = f"unix://{sys.argv[1]}", Path(sys.argv[2])
DEADLINE = 60


def tell(*words):
    print(*words, flush=True)


def leaf(source):
    der = source.svid.leaf.public_bytes(serialization.Encoding.DER)
    return f"{source.svid.spiffe_id} {hashlib.sha256(der).hexdigest()}"


def mtls(source):
    """Both ends have the identity of `source`; gives the name that the server saw."""
    chain, key, roots = (str(FOLDER / name) for name in ("chain.pem", "key.pem", "roots.pem"))
    source.svid.save(chain, key, serialization.Encoding.PEM)
    bundle = source.get_bundle_for_trust_domain(source.svid.spiffe_id.trust_domain)
    pem = [root.public_bytes(serialization.Encoding.PEM).decode() for root in bundle.x509_authorities]
    Path(roots).write_text("".join(pem))

    def context(purpose):
        made = ssl.SSLContext(purpose)
        # A SPIFFE ID is no host name; the chain is verified.
        made.check_hostname = False
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(roots)
        made.load_cert_chain(chain, key)
        return made

    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE)

    def call():
        raw = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        with context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw) as client:
            client.sendall(b"hello")

    threading.Thread(target=call).start()
    raw, _ = listener.accept()
    with context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(raw, server_side=True) as server:
        assert server.recv(5) == b"hello"
        return dict(server.getpeercert()["subjectAltName"])["URI"]


updated = threading.Event()
source = X509Source(socket_path=ENDPOINT, timeout_in_seconds=DEADLINE)
source.subscribe_for_updates(updated.set)
first = leaf(source)
tell("svid", first)
while leaf(source) == first:
    assert updated.wait(DEADLINE), "no rotation was seen"
    updated.clear()
tell("rotated", leaf(source))
tell("mtls with", mtls(source))

jwts = JwtSource(socket_path=ENDPOINT, timeout_in_seconds=DEADLINE)
token = jwts.fetch_svid({"python", "more"})
bundle = jwts.get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
tell("jwt by its bundle", JwtSvid.parse_and_validate(token.token, bundle, {"more"}).spiffe_id)
client = WorkloadApiClient(ENDPOINT)
tell("jwt by the agent", client.validate_jwt_svid(token.token, "python").spiffe_id)
try:
    client.validate_jwt_svid(token.token, "other")
except Exception:
    tell("done")
else:
    sys.exit("a JWT-SVID is valid for an audience that it does not name")
# The sources' threads are daemons.
