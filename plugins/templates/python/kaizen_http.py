"""Requests to the hosts that the manifest asks for."""

import datetime
import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, Optional
from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from kaizen import config, internal, rejected, unavailable
from wit_world.imports import outgoing_handler, streams
from wit_world.imports import wasi_http_types as http

LARGEST = 1 << 20
"""More than this is not read from an answer."""

PATIENCE = 10
"""Seconds that a whole exchange may take. The server ends the call at a limit of its own, and says less."""


@dataclass
class Answer:
    """One answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def success(self) -> "Answer":
        """Itself, if it is 2xx; otherwise raises who has to act: nobody yet, the operator, or the sender."""
        if 200 <= self.status < 300:
            return self
        message = f"the answer is {self.status}"
        if self.status in (408, 425, 429) or self.status >= 500:
            raise unavailable(message, self._retry_after())
        if 300 <= self.status < 400 or self.status in (401, 403, 404, 407):
            raise config(message)
        raise rejected(message)

    def json(self) -> Any:
        """The body as JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise rejected(f"the answer ({self.status} with {len(self.body)} bytes) is not JSON") from None

    def _retry_after(self) -> Optional[int]:
        """Milliseconds: from seconds, or from a date, which is compared with the far side's own clock."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return int(value[:9]) * 1000
        until, now = _date(value), _date(self.headers.get("date", ""))
        if until is None:
            return None
        now = now or datetime.datetime.now(datetime.timezone.utc)
        return max(0, round((until - now).total_seconds() * 1000))


def _date(text: str) -> Optional[datetime.datetime]:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)


_METHODS = {
    "GET": http.Method_Get,
    "POST": http.Method_Post,
    "PUT": http.Method_Put,
    "PATCH": http.Method_Patch,
    "DELETE": http.Method_Delete,
    "HEAD": http.Method_Head,
}


def send(method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """Sends a request and reads the answer, whatever its status. A connection that fails or breaks off is worth another
    attempt. Redirects are not followed."""
    try:
        return _send(method, url, headers, body)
    except Err as error:
        _explain(error.value)


def _send(method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
    deadline = time.monotonic() + PATIENCE
    parts = urlsplit(url)
    fields = [(name, value.encode()) for name, value in headers.items()]
    fields.append(("content-length", str(len(body)).encode()))
    request = http.OutgoingRequest(http.Fields.from_list(fields))
    request.set_method(_METHODS[method]())
    request.set_scheme(http.Scheme_Http() if parts.scheme == "http" else http.Scheme_Https())
    request.set_authority(parts.netloc)
    request.set_path_with_query((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    outgoing = request.body()
    options = http.RequestOptions()
    nanoseconds = PATIENCE * 1_000_000_000
    options.set_connect_timeout(nanoseconds)
    options.set_first_byte_timeout(nanoseconds)
    options.set_between_bytes_timeout(nanoseconds)
    future = outgoing_handler.handle(request, options)
    with outgoing.write() as stream:
        for start in range(0, len(body), 4096):
            stream.blocking_write_and_flush(body[start : start + 4096])
    http.OutgoingBody.finish(outgoing, None)
    with future.subscribe() as ready:
        ready.block()
    outcome = future.get()
    if not isinstance(outcome, Ok) or isinstance(outcome.value, Err):
        raise outcome.value if isinstance(outcome, Ok) else Err(None)
    response = outcome.value.value
    received = {name.lower(): value.decode("latin-1") for name, value in response.headers().entries()}
    with response.consume() as incoming, incoming.stream() as stream:
        return Answer(response.status(), received, _read(stream, deadline))


def _read(stream: streams.InputStream, deadline: float) -> bytes:
    chunks, size = [], 0
    while size <= LARGEST:
        if time.monotonic() > deadline:
            raise Err(http.ErrorCode_HttpResponseTimeout())
        try:
            chunk = stream.blocking_read(64 << 10)
        except Err as error:
            if isinstance(error.value, streams.StreamError_Closed):
                return b"".join(chunks)
            raise
        chunks.append(chunk)
        size += len(chunk)
    raise Err(http.ErrorCode_HttpResponseBodySize(size))


def _explain(cause: Any) -> NoReturn:
    """What `wasi:http` says, as a plugin's error."""
    if isinstance(cause, streams.StreamError_LastOperationFailed):
        cause = http.http_error_code(cause.value) or cause
    name = type(cause).__name__.removeprefix("ErrorCode_")
    if name == "HttpRequestDenied":
        raise config("the request was not allowed to leave")
    if name == "TlsCertificateError":
        raise config("the certificate is not trusted")
    if name in ("HttpResponseBodySize", "HttpResponseContentCoding"):
        raise rejected(f"the answer is too large or encoded ({name})")
    if name.startswith("HttpRequest"):
        raise internal(f"the request cannot be sent: {name}")
    raise unavailable(f"no answer: {name}")
