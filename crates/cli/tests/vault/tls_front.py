"""What ends TLS before Vault, as a load balancer does.

Usage: tls_front.py VAULT-PORT CERT KEY [tls1.2] [clients=CA]. With `clients` it asks for a certificate of that CA.
"""

import asyncio
import ssl
import sys

vault, cert, key, *more = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
for word in more:
    if word == "tls1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(word.removeprefix("clients="))


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    up, down = await asyncio.open_connection("127.0.0.1", int(vault))
    await asyncio.gather(pump(reader, down), pump(up, writer))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(f"ending TLS on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


asyncio.run(main())
