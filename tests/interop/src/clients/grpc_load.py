# Calls of gRPC at a steady rate beside one conversation, over whichever connections the library makes: each failure
# counts, and each time that the connection is told to end.
import json, sys, threading, time

import grpc

seconds = float(sys.argv[2])
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_retries", 0)])
as_it_is = dict(request_serializer=None, response_deserializer=None)
states, failures, words = [], [], []
channel.subscribe(lambda state: states.append(state.name))
end = time.monotonic() + seconds


def speaking():
    while time.monotonic() < end:
        yield b"word"
        time.sleep(0.05)


def converse():
    try:
        for answer in channel.stream_stream("/shop.Orders/Talk", **as_it_is)(speaking()):
            words.append(answer)
    except grpc.RpcError as error:
        failures.append("the conversation: %s %s" % (error.code(), error.details()))


conversation = threading.Thread(target=converse)
conversation.start()
calls = 0
get = channel.unary_unary("/shop.Orders/Get", **as_it_is)
while time.monotonic() < end:
    calls += 1
    try:
        get(b"hello", timeout=5)
    except grpc.RpcError as error:
        failures.append("%s %s" % (error.code(), error.details()))
    if calls == 10:
        print("begun")
    time.sleep(0.01)
conversation.join()
print(json.dumps({"calls": calls, "words": len(words), "failures": failures, "states": states}))
