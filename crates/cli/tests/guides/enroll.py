"""An executor that shares nothing with ours but fleet.proto. Usage: enroll.py STUBS PORT CA CERT KEY

Prints a line for each promise of the protocol that it saw kept. Then it stays enrolled until it is drained.
"""

import queue
import sys
import threading
import time

stubs, port, ca, cert, key = sys.argv[1:]
sys.path.insert(0, stubs)

import grpc  # noqa: E402
from ah.fleet.v1 import fleet_pb2 as pb  # noqa: E402

DEADLINE = 60


def read(path):
    with open(path, "rb") as file:
        return file.read()


def serialize(message):
    """Messages that protobuf would not make are given as bytes."""
    return message if isinstance(message, bytes) else message.SerializeToString()


credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
channel = grpc.secure_channel(f"localhost:{port}", credentials)
enroll = channel.stream_stream(
    "/ah.fleet.v1.Fleet/Enroll",
    request_serializer=serialize,
    response_deserializer=pb.AccessPointMessage.FromString,
)


class Session:
    """One call. Heartbeats of the access point are answered as the protocol asks, at once."""

    def __init__(self, *messages):
        self.out = queue.Queue()
        self.received = queue.Queue()
        self.heartbeats = queue.Queue()
        for message in messages:
            self.out.put(message)
        self.call = enroll(iter(self.out.get, None))
        self.error = None
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        try:
            for message in self.call:
                kind = message.WhichOneof("kind")
                if kind == "heartbeat":
                    reply = pb.HeartbeatReply(sequence=message.heartbeat.sequence)
                    self.send(heartbeat_reply=reply)
                    self.heartbeats.put(message.heartbeat)
                else:
                    self.received.put(getattr(message, kind))
        except grpc.RpcError as error:
            self.error = error
        self.received.put(None)

    def send(self, **kind):
        self.out.put(pb.ExecutorMessage(**kind))

    def next(self):
        message = self.received.get(timeout=DEADLINE)
        assert message is not None, f"the call ended: {self.error}"
        return message

    def beat(self, sequence):
        self.send(heartbeat=pb.Heartbeat(sequence=sequence, last_round_trip_us=250))
        assert self.next().sequence == sequence

    def goodbye(self):
        self.send(goodbye=pb.Goodbye(reason="done"))
        self.out.put(None)
        self.reader.join(DEADLINE)
        assert self.error is None, self.error
        assert self.call.code() == grpc.StatusCode.OK

    def refused(self):
        """How the access point ended the call: status, text, and what the metadata say."""
        self.reader.join(DEADLINE)
        assert self.error is not None, "the call was not refused"
        metadata = {}
        for name, value in self.error.trailing_metadata():
            metadata.setdefault(name, []).append(value)
        return self.error.code(), self.error.details(), metadata


def hello(**changes):
    fields = {
        "protocol": 1,
        "name": "py",
        "instance_id": "0123456789abcdef0123",
        "version": "0.9",
        "labels": {"language": "python"},
        "host": pb.HostFacts(hostname="snake", os="linux", cpus=3),
        "provider": "files",
    }
    fields.update(changes)
    return pb.Hello(**fields)


def greeting(**changes):
    return pb.ExecutorMessage(hello=hello(**changes))


def padded(size):
    """A message of exactly so many bytes, of a kind that nobody knows: field 103."""
    payload = size - 5
    varint = bytes([payload & 0x7F | 0x80, payload >> 7 & 0x7F | 0x80, payload >> 14])
    message = b"\xba\x06" + varint + bytes(payload)
    assert len(message) == size
    return message


def kept(promise):
    print(f"kept: {promise}", flush=True)


silent = Session()

# A newer protocol with fields and kinds that this access point does not know.
newer = pb.Hello.FromString(hello(protocol=7, provider="telepathy").SerializeToString() + b"\xba\x06\x03abc")
session = Session(pb.ExecutorMessage(hello=newer))
welcome = session.next()
assert welcome.protocol == 1, welcome
assert welcome.executor_id == "spiffe://example.org/ah/agent/py", welcome
assert welcome.session_id and welcome.version, welcome
assert welcome.heartbeat_interval_ms == 1000, welcome
assert abs(welcome.server_time_unix_ms / 1000 - time.time()) < 60, welcome
session.out.put(padded(65_536))
kept("a newer protocol and unknown fields are tolerated")

session.beat(1)
first = session.heartbeats.get(timeout=DEADLINE)
assert first.sequence == 1, first
session.beat(2)
second = session.heartbeats.get(timeout=DEADLINE)
assert second.sequence == 2 and second.last_round_trip_us > 0, second
kept("heartbeats go both ways and are answered")

# A second process with the same certificate, while the first one answers (RG-2).
code, text, metadata = Session(greeting(instance_id="another-process-1")).refused()
assert code == grpc.StatusCode.ALREADY_EXISTS, (code, text)
assert metadata["ah-code"] == ["duplicate"], metadata
assert metadata["ah-cause"] and len(metadata["ah-hint"]) == 1, metadata
kept("a duplicate is refused with code, cause and hint")

# Too large: that call ends, its neighbour on the same connection does not, and another may begin.
large = Session(padded(65_537))
code, text, metadata = large.refused()
too_large = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE)
assert code in too_large, (code, text)
session.beat(3)
session.out.put(padded(65_537))
code, text, metadata = session.refused()
assert code in too_large, (code, text)
session = Session(greeting())
assert session.next().executor_id == welcome.executor_id
session.beat(1)
kept("a message over 65,536 bytes ends its call only")

session.send(hello=hello())
code, text, metadata = session.refused()
assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "hello was sent twice"), (code, text)
assert metadata["ah-code"] == ["usage"], metadata
code, text, metadata = Session(pb.ExecutorMessage(heartbeat=pb.Heartbeat(sequence=1))).refused()
assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "first message is not a hello"), (code, text)
assert "Hello" in metadata["ah-hint"][0], metadata
kept("hello comes first and once")

limits = {
    "protocol": {"protocol": 0},
    "name": {"name": ""},
    "name of": {"name": "n" * 254},
    "instance_id": {"instance_id": "short"},
    "instance_id of": {"instance_id": "i" * 65},
    "65 labels": {"labels": {f"k{n}": "" for n in range(65)}},
    "label's key": {"labels": {"k" * 64: ""}},
    "label's value": {"labels": {"k": "v" * 256}},
    "control character": {"name": "a\x1b[2J"},
}
for word, changes in limits.items():
    code, text, metadata = Session(greeting(**changes)).refused()
    assert code == grpc.StatusCode.INVALID_ARGUMENT, (word, code, text)
    assert word in text, (word, text)
    assert metadata["ah-code"] == ["usage"], metadata
session = Session(
    greeting(name="n" * 253, labels={"k" * 63: "v" * 255, **{f"k{n}": "" for n in range(63)}})
)
session.next()
session.goodbye()
kept("the limits of a hello hold")

code, text, metadata = silent.refused()
assert (code, text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no hello within 10 s of the call"), (code, text)
assert metadata["ah-code"] == ["unavailable"], metadata
kept("a call without a hello ends")

session = Session(greeting())
session.next()
print("waiting for the drain", flush=True)
drain = session.next()
assert drain.reconnect_after_ms > 0 and drain.reason, drain
session.goodbye()
kept("a drain is told, and a goodbye ends the call in order")
