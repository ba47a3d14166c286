# A client of gRPC that demands of each kind of call what its specification says.
import sys, time

import grpc

options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 32 << 20)]
channel = grpc.insecure_channel(sys.argv[1], options=options)
as_it_is = dict(request_serializer=None, response_deserializer=None)
path = "/shop.Orders/%s"


def one(name):
    return channel.unary_unary(path % name, **as_it_is)


def demand(what, have, wanted):
    assert have == wanted, "%s: have %.200r, wanted %.200r" % (what, have, wanted)


def fails(what, code, call):
    start = time.monotonic()
    try:
        call()
    except grpc.RpcError as error:
        demand(what, error.code(), code)
        return error, time.monotonic() - start
    raise AssertionError(what + ": it did not fail")


for size in (0, 1, 1 << 20, 8 << 20):
    message = b"x" * size
    answer, call = one("Get").with_call(message, timeout=20, metadata=(("x-asked-bin", bytes(range(256))),))
    demand("a call", answer, message)
    demand("its head", dict(call.initial_metadata()).get("x-first"), "head")
    trailers = dict(call.trailing_metadata())
    demand("its trailers", (trailers.get("x-last"), trailers.get("x-last-bin")), ("tail", bytes(range(256))))

error, _ = fails("a call that fails", grpc.StatusCode.INVALID_ARGUMENT, lambda: one("Fail")(b""))
demand("its words", error.details(), "no such order: \u00fc, 100 %")
fails("a method that is none", grpc.StatusCode.UNIMPLEMENTED, lambda: one("Other")(b""))
error, _ = fails("what a policy forbids", grpc.StatusCode.PERMISSION_DENIED, lambda: one("Delete")(b""))

stream = channel.unary_stream(path % "List", **as_it_is)
demand("a stream of answers", list(stream(b"2000", timeout=20)), [b"%d" % number for number in range(2000)])
puts = channel.stream_unary(path % "Put", **as_it_is)
demand("a stream of requests", puts((b"y" * 1000 for _ in range(2000)), timeout=20), b"2000000")

# Each is said only after the answer to the one before has come: nothing is held back.
said = []


def speaking():
    for number in range(200):
        while len(said) < number:
            time.sleep(0.001)
        yield b"word %d" % number


for answer in channel.stream_stream(path % "Talk", **as_it_is)(speaking(), timeout=20):
    said.append(answer)
demand("a conversation", said, [b"WORD %d" % number for number in range(200)])

_, took = fails("a deadline", grpc.StatusCode.DEADLINE_EXCEEDED, lambda: one("Sleep")(b"", timeout=0.3))
assert took < 2, "the deadline of 0.3 s was kept after %.1f s" % took
endless = channel.unary_stream(path % "Endless", **as_it_is)(b"")
demand("a stream without end", [next(endless) for _ in range(3)], [b"more"] * 3)
endless.cancel()
# The server is told that nobody waits any more.
end = time.monotonic() + 10
while sorted(one("Abandoned")(b"", timeout=5).split(b",")) != [b"endless", b"sleep"]:
    assert time.monotonic() < end, "the server was not told: %r" % one("Abandoned")(b"")
    time.sleep(0.05)
print("well")
