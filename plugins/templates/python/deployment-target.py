"""{{title}}: registers agents with a service that has `PUT`, `GET` and `DELETE /agents/{id}`."""

import json
from typing import Any, Optional
from urllib.parse import urlsplit

from kaizen import secret
from kaizen_http import Answer, send
from wit_world.exports import manifest
from wit_world.exports.target import (
    Registration,
    Release,
    State,
    State_Active,
    State_Failed,
    State_Gone,
    State_Pending,
)
from wit_world.imports import progress
from wit_world.imports.kaizen_plugin_types import Call


class Manifest:
    """What the plugin is, what a connection has to fill in, and what it asks for."""

    def describe(self) -> manifest.Manifest:
        return manifest.Manifest(
            name="{{name}}",
            version="0.1.0",
            title="{{title}}",
            description="Registers agents with a service of our own.",
            config_schema=json.dumps(
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["url"],
                    "properties": {
                        "url": {"type": "string", "format": "uri", "description": "The service's address."},
                    },
                }
            ),
            # The server puts it into requests to `url`'s host and to no other.
            secrets=[manifest.SecretSlot("token", "A token that the service accepts.", ["{config.url}"])],
            # The only host this plugin may speak to.
            capabilities=[manifest.Capability_Http("{config.url}")],
        )


class Target:
    def check(self, call: Call) -> str:
        """Is the target there and are the credentials good? A sentence for the operator."""
        request(call, "GET", "agents").success()
        return f"{urlsplit(address(call, '')).netloc} takes agents."

    def deploy(self, call: Call, release: Release) -> Registration:
        """The same deployment again gives the same registration: its id is the agent's name there."""
        progress.report(10, f"Registering {release.agent_name}")
        body = {
            "name": release.agent_name,
            "environment": release.environment,
            "workflow": json.loads(release.workflow),
        }
        path = f"agents/{release.deployment_id}"
        request(call, "PUT", path, body).success()
        return Registration(id=release.deployment_id, endpoint=address(call, path))

    def status(self, call: Call, registration_id: str) -> State:
        answer = request(call, "GET", f"agents/{registration_id}")
        if answer.status == 404:
            return State_Gone()
        agent = answer.success().json()
        state = agent.get("state") if isinstance(agent, dict) else None
        if state == "failed":
            return State_Failed(str(agent.get("reason", "no reason given")))
        if state == "active":
            return State_Active()
        return State_Pending(f"it is {state or 'starting'}")

    def undeploy(self, call: Call, registration_id: str) -> None:
        """Removing what is already gone succeeds."""
        answer = request(call, "DELETE", f"agents/{registration_id}")
        if answer.status != 404:
            answer.success()


def address(call: Call, path: str) -> str:
    return f"{json.loads(call.config)['url'].rstrip('/')}/{path}"


def request(call: Call, method: str, path: str, body: Optional[Any] = None) -> Answer:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {secret('token')}",
        "idempotency-key": call.idempotency_key,
    }
    return send(method, address(call, path), headers, b"" if body is None else json.dumps(body).encode())
