"""The least work that uvicorn can do for a POST: answer as many bytes as the server would, and store nothing."""

from starlette.types import Receive, Scope, Send

ANSWER = (
    b'{"id":100001,"temperature":23.5,"humidity":48.2,"pressure":1013.2,"date_recorded":"2023-07-12",'
    b'"time_recorded":"14:30:45","sensor_id":"sensor-1","client_ip":"127.0.0.1"}'
)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 201, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})
