"""Kubernetes' TokenReview interface, which Vault's Kubernetes auth asks whose a token is.

Usage: token_review.py PORT ACCOUNTS [CERT KEY]. ACCOUNTS is a file of lines `TOKEN NAMESPACE NAME`, read at each request.
"""

import http.server
import json
import ssl
import sys

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class TokenReview(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = {"authenticated": False, "error": "unknown token"}
        with open(sys.argv[2]) as accounts:
            for token, namespace, name in map(str.split, accounts):
                if token == asked["spec"]["token"]:
                    user = f"system:serviceaccount:{namespace}:{name}"
                    user = {"username": user, "uid": "1", "groups": []}
                    status = {"authenticated": True, "user": user, "audiences": asked["spec"].get("audiences", [])}
        asked["status"] = status
        body = json.dumps(asked).encode()
        self.send_response(201 if self.path == PATH else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), TokenReview)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[3:])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(f"reviewing tokens on {server.server_address[1]}", flush=True)
server.serve_forever()
