# Says three things unasked, then says back whatever it hears, until it is told to leave.
import asyncio, sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def talk(connection):
    for number in range(3):
        await connection.send("unasked %d" % number)
    try:
        while (message := await connection.recv()) != "leave":
            await connection.send(message)
        await connection.close(4002, "as you wish")
    except ConnectionClosed:
        pass
    print("closed %s %s" % (connection.close_code, connection.close_reason))


async def main():
    async with serve(talk, "0.0.0.0", int(sys.argv[1]), subprotocols=["echo.v1"], max_size=16 << 20) as server:
        print("ready")
        await server.serve_forever()


asyncio.run(main())
