"""The bundled audit sink `webhook`, in Python: posts audit events to an address of one's own, signed.

The body is {"events":[…]}, the events in order. The header `Kaizen-Signature: t=SECONDS,v1=HEX` has HMAC-SHA256, with the
secret `signing-key`, over SECONDS.BODY. Any 2xx means that all events are stored, unless the body is JSON with `stored`:
then that many are, from the first.
"""

import hashlib
import hmac
import json
import time
from urllib.parse import urlsplit

from componentize_py_types import Err
from kaizen import config, rejected, revealed
from kaizen_http import Answer, send
from wit_world.exports import manifest
from wit_world.exports.sink import Event
from wit_world.imports import log
from wit_world.imports.kaizen_plugin_types import Call

SHORTEST_KEY = 16
"""Shorter keys can be guessed."""


class Manifest:
    def describe(self) -> manifest.Manifest:
        return manifest.Manifest(
            name="webhook-python",
            version="0.1.0",
            title="Webhook (Python)",
            description="Posts audit events to an address, signed with HMAC-SHA256.",
            config_schema=json.dumps(
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["url"],
                    "properties": {
                        "url": {
                            "type": "string",
                            "format": "uri",
                            "description": "The address that takes the events.",
                        },
                        "max_events": {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": 1000,
                            "default": 500,
                            "description": "How many events at most go into one request.",
                        },
                    },
                }
            ),
            secrets=[
                manifest.SecretSlot(
                    "signing-key",
                    "The key shared with the receiver, at least 16 characters. It is never sent.",
                    [],
                )
            ],
            capabilities=[
                manifest.Capability_Http("{config.url}"),
                manifest.Capability_RevealSecret("signing-key"),
            ],
        )


class Sink:
    def check(self, call: Call) -> str:
        """Posts a batch without events."""
        post(call, [], call.idempotency_key)
        return f"{urlsplit(json.loads(call.config)['url']).netloc} takes signed requests."

    def deliver(self, call: Call, events: list[Event]) -> int:
        size = json.loads(call.config).get("max_events", 500)
        stored = 0
        while stored < len(events):
            chunk = events[stored : stored + size]
            # Names what is in it: a receiver that drops repeats must not take other events for one.
            key = f"{call.idempotency_key}/{chunk[0].sequence}-{chunk[-1].sequence}"
            try:
                now = stored_of(post(call, chunk, key), len(chunk))
            except Err:
                if stored == 0:
                    raise
                # The first chunks are stored: the rest comes again, and then tells why.
                log.write(log.Level.WARN, f"stored {stored} of {len(events)} events")
                break
            stored += now
            if now < len(chunk):
                break
        return stored


def post(call: Call, events: list[Event], idempotency_key: str) -> Answer:
    key = revealed("signing-key")
    if len(key) < SHORTEST_KEY:
        raise config(f"secret `signing-key`: it needs at least {SHORTEST_KEY} characters")
    body = f'{{"events": [{", ".join(to_json(event) for event in events)}]}}'.encode()
    now = int(time.time())
    signature = hmac.new(key.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    headers = {
        "content-type": "application/json",
        "kaizen-signature": f"t={now},v1={signature}",
        "idempotency-key": idempotency_key,
    }
    answer = send("POST", json.loads(call.config)["url"], headers, body)
    # Refused events would never be delivered: that the address is wrong is for the operator to see.
    if answer.status in (405, 410):
        raise config(f"url: the answer is {answer.status}")
    return answer.success()


def stored_of(answer: Answer, sent: int) -> int:
    """How many of `sent` the receiver says it stored."""
    try:
        said = json.loads(answer.body).get("stored")
    except (ValueError, AttributeError):
        return sent
    if said is None:
        return sent
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= sent:
        return said
    raise rejected(f"the receiver says it stored {json.dumps(said)} of {sent} events")


def to_json(event: Event) -> str:
    """One event as JSON. Its hash covers the exact text of `details`, which is put in as it is: parsed and written again,
    `1.50` would be `1.5`."""
    rest = json.dumps({
        "id": event.id,
        "sequence": event.sequence,
        "occurred_at": event.occurred_at,
        "organization_id": event.organization_id,
        "actor": event.actor,
        "action": event.action,
        "target": event.target,
        "outcome": event.outcome.name.lower(),
        "hash": event.hash,
    })
    return f'{rest[:-1]}, "details": {event.details}}}'
