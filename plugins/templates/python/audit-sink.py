"""{{title}}: sends audit events to an address, as JSON."""

import json
from urllib.parse import urlsplit

from kaizen import secret
from kaizen_http import send
from wit_world.exports import manifest
from wit_world.exports.sink import Event
from wit_world.imports.kaizen_plugin_types import Call


class Manifest:
    """What the plugin is, what a connection has to fill in, and what it asks for."""

    def describe(self) -> manifest.Manifest:
        return manifest.Manifest(
            name="{{name}}",
            version="0.1.0",
            title="{{title}}",
            description="Sends audit events to an address, as JSON.",
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
                    },
                }
            ),
            # The server puts it into requests to `url`'s host and to no other.
            secrets=[manifest.SecretSlot("token", "A token that the address accepts.", ["{config.url}"])],
            # The only host this plugin may speak to.
            capabilities=[manifest.Capability_Http("{config.url}")],
        )


class Sink:
    def check(self, call: Call) -> str:
        """Does the sink take events? A sentence for the operator."""
        post(call, [])
        return f"{urlsplit(json.loads(call.config)['url']).netloc} takes events."

    def deliver(self, call: Call, events: list[Event]) -> int:
        """Returns how many events, from the first, are stored; the rest comes again."""
        post(call, events)
        return len(events)


def post(call: Call, events: list[Event]) -> None:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {secret('token')}",
        "idempotency-key": call.idempotency_key,
    }
    body = ('{"events": [' + ", ".join(to_json(event) for event in events) + "]}").encode()
    send("POST", json.loads(call.config)["url"], headers, body).success()


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
