# What RFC 6455 knows, said and heard: text, bytes, pieces, pings, and the end from either side.
import asyncio, os, sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

url = sys.argv[1]
options = dict(subprotocols=["echo.v0", "echo.v1"], max_size=16 << 20, open_timeout=10)


def demand(what, have, wanted):
    assert have == wanted, "%s: have %.200r, wanted %.200r" % (what, have, wanted)


async def greeted(connection):
    unasked = [await connection.recv() for _ in range(3)]
    demand("what is said unasked", unasked, ["unasked 0", "unasked 1", "unasked 2"])


async def main():
    async with asyncio.timeout(30):
        async with connect(url + "/talk", **options) as connection:
            await greeted(connection)
            demand("what both speak", connection.subprotocol, "echo.v1")
            large = os.urandom(2 << 20)
            for message in ("", "words: \u00fc", b"", bytes(range(256)), large, "x" * 300000):
                await connection.send(message)
                demand("what comes back", await connection.recv(), message)
            await connection.send(["in ", "three ", "pieces"])
            demand("pieces", await connection.recv(), "in three pieces")
            await (await connection.ping(b"are you there"))
            for number in range(200):
                await connection.send(str(number))
            demand("in order", [await connection.recv() for _ in range(200)], [str(n) for n in range(200)])
            await connection.close(3001, "enough")
        demand("the end that we say", (connection.close_code, connection.close_reason), (3001, "enough"))
        connection = await connect(url + "/talk", **options)
        await greeted(connection)
        await connection.send("leave")
        try:
            await connection.recv()
            raise AssertionError("it did not end")
        except ConnectionClosed as closed:
            demand("the end that it says", (closed.rcvd.code, closed.rcvd.reason), (4002, "as you wish"))
        try:
            await connect(url + "/refused", **options)
            raise AssertionError("it was let in")
        except InvalidStatus as refused:
            demand("what a policy forbids", refused.response.status_code, 403)
    print("well")


asyncio.run(main())
