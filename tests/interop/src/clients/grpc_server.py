# A server of gRPC without generated code: messages are bytes as they are.
import sys, time
from concurrent import futures

import grpc

left = []


def noting(context, name):
    # These calls end only when their caller leaves.
    context.add_callback(lambda: left.append(name))


def get(request, context):
    context.send_initial_metadata((("x-first", "head"),))
    context.set_trailing_metadata((("x-last", "tail"), ("x-last-bin", bytes(range(256)))))
    return request


def listed(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def put(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def talk(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such order: \u00fc, 100 %")


def sleep(request, context):
    noting(context, "sleep")
    while context.is_active():
        time.sleep(0.01)
    return b""


def endless(request, context):
    noting(context, "endless")
    while True:
        yield b"more"
        time.sleep(0.01)


def abandoned(request, context):
    return ",".join(left).encode()


handlers = {
    "Get": grpc.unary_unary_rpc_method_handler(get),
    "Delete": grpc.unary_unary_rpc_method_handler(get),
    "List": grpc.unary_stream_rpc_method_handler(listed),
    "Put": grpc.stream_unary_rpc_method_handler(put),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Abandoned": grpc.unary_unary_rpc_method_handler(abandoned),
}
options = [("grpc.max_receive_message_length", 32 << 20)]
server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", handlers),))
server.add_insecure_port("0.0.0.0:" + sys.argv[1])
server.start()
print("ready")
server.wait_for_termination()
