"""{{title}}: signs people in with OpenID Connect."""

import json
from typing import Any, Optional

from kaizen import config, rejected
from wit_world.exports import manifest
from wit_world.exports.provider import Grant, Identity, Oidc, Protocol, Protocol_Oidc
from wit_world.imports.kaizen_plugin_types import Call


class Manifest:
    """What the plugin is and what a connection has to fill in. It asks for nothing: the server runs the protocol."""

    def describe(self) -> manifest.Manifest:
        return manifest.Manifest(
            name="{{name}}",
            version="0.1.0",
            title="{{title}}",
            description="Signs people in with OpenID Connect.",
            config_schema=json.dumps(
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["issuer", "client_id"],
                    "properties": {
                        "issuer": {
                            "type": "string",
                            "format": "uri",
                            "description": "The issuer, exactly as in its tokens.",
                        },
                        "client_id": {
                            "type": "string",
                            "minLength": 1,
                            "description": "This server's id at the issuer.",
                        },
                        "groups_claim": {
                            "type": "string",
                            "default": "groups",
                            "description": "The claim with the person's groups.",
                        },
                    },
                }
            ),
            # Only the server sends it, to the token endpoint.
            secrets=[manifest.SecretSlot("client-secret", "This server's secret at the issuer.", [])],
            capabilities=[],
        )


class Provider:
    def begin(self, call: Call) -> Protocol:
        """Which protocol to run, against whom."""
        issuer = json.loads(call.config)["issuer"]
        if not issuer.startswith(("https://", "http://")):
            raise config("issuer: an https:// address")
        return Protocol_Oidc(Oidc(issuer, ["openid", "email", "profile"], []))

    def identify(self, call: Call, grant: Grant) -> Identity:
        """Who signed in. The claims are verified."""
        if grant.claims is None:
            raise rejected("the sign-in brought no ID token")
        token, userinfo = json.loads(grant.claims), json.loads(grant.userinfo or "{}")
        claims = {**userinfo, **token}
        # An address counts as verified only where the document that has it says so.
        source = token if text(token.get("email")) else userinfo
        if not text(claims.get("sub")):
            raise rejected("the ID token has no `sub`")
        groups = claims.get(json.loads(call.config).get("groups_claim", "groups"))
        return Identity(
            subject=claims["sub"],
            email=text(source.get("email")),
            email_verified=source.get("email_verified") is True,
            name=text(claims.get("name")),
            groups=[group for group in groups if isinstance(group, str)] if isinstance(groups, list) else [],
            attributes=[],
        )


def text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) and value else None
