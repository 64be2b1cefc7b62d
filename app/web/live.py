"""WS /ws/sensor_updates: the latest reading, then every reading as it is committed.

The key comes in the query (``?api-key=``), in the X-API-Key header, or, from a browser that can set neither, as the
subprotocol ``sensorflow.key.<key>`` beside ``sensorflow``. A connection that is refused is accepted first and then
closed with the reason, since a browser shows its page nothing of a refused handshake.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.errors import SensorFlowError
from app.live.hub import Hub, Subscriber
from app.web import auth, error_responses
from app.web.access import key_bytes
from app.web.refusals import log_refusal
from app.web.sides import until_first_ends

PATH = "/ws/sensor_updates"
SUBPROTOCOL = "sensorflow"
KEY_SUBPROTOCOL = "sensorflow.key."
CLOSE_TIMEOUT_S = 1.0


def live_router(*, hub: Hub, api_keys: auth.ApiKeys, send_timeout_s: float) -> APIRouter:
    """Return the WebSocket route. A send that takes longer than ``send_timeout_s`` ends its connection."""
    router = APIRouter()

    @router.websocket(PATH)
    async def sensor_updates(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=_chosen_subprotocol(websocket.scope["subprotocols"]))
        mail = asyncio.Event()
        try:
            key_name = api_keys.authorize(_sent_key(websocket), auth.Scope.LISTEN)
            subscriber = await hub.subscribe(key_name, mail.set)
        except SensorFlowError as error:
            code = error_responses.CLOSE_CODES[type(error)]
            log_refusal(f"WebSocket {PATH}", websocket.client.host if websocket.client else "", code, str(error))
            await websocket.close(code, str(error))
            return
        # Whichever ends first ends the connection: the peer hangs up, or is too slow for what it asked for.
        # A subscriber that has left no longer counts against its key's limit.
        await until_first_ends(
            _until_hung_up(websocket),
            _forward(websocket, hub, subscriber, mail, send_timeout_s),
            at_end=partial(hub.unsubscribe, subscriber),
        )

    return router


async def _until_hung_up(websocket: WebSocket) -> None:
    """Read and ignore what the peer sends: its close frame is among it."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _forward(
    websocket: WebSocket, hub: Hub, subscriber: Subscriber, mail: asyncio.Event, send_timeout_s: float
) -> None:
    """Send the mailbox's content as it comes, until the subscriber is dropped or a send takes too long."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as deadline:
            while not subscriber.dropped:
                deadline.reschedule(None)
                await mail.wait()
                mail.clear()
                for receipt in subscriber.take():
                    if subscriber.dropped:
                        break
                    deadline.reschedule(loop.time() + send_timeout_s)
                    await websocket.send_text(receipt.payload.decode())
    except TimeoutError:
        hub.drop(subscriber)
    except WebSocketDisconnect:
        return
    # Who does not read does not read this either; ending the task ends the connection.
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await websocket.close(error_responses.TOO_SLOW_CLOSE_CODE, "This client reads too slowly.")


def _sent_key(websocket: WebSocket) -> bytes | None:
    by_subprotocol = (
        protocol.removeprefix(KEY_SUBPROTOCOL)
        for protocol in websocket.scope["subprotocols"]
        if protocol.startswith(KEY_SUBPROTOCOL)
    )
    if in_query := websocket.query_params.get("api-key"):
        return in_query.encode(errors="replace")
    return key_bytes(websocket.headers.get("x-api-key") or next(by_subprotocol, None))


def _chosen_subprotocol(offered: Sequence[str]) -> str | None:
    """One of those offered, since a browser wants an answer. It is not the key, if it can be helped."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else next(iter(offered), None)
