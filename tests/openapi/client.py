"""Plays the product's main job with the client that openapi-python-client makes of host/openapi.json: somebody signs in, makes
an agent, deploys it, and finds it in the audit trail. Checked by mypy: every type comes from the document."""
import json
import os
import time
from http import HTTPStatus
from typing import TypeVar

from kaizen_client import AuthenticatedClient, Client
from kaizen_client.api.agents import create_agent, update_agent
from kaizen_client.api.audit import list_audit_events
from kaizen_client.api.deployments import deploy_agent, get_deployment
from kaizen_client.api.gateways import check_gateway, create_gateway
from kaizen_client.api.sign_in import get_current_user, sign_in
from kaizen_client.api.versions import create_agent_version
from kaizen_client.api.workspaces import create_workspace
from kaizen_client.models import (
    AgentChange,
    AgentSettings,
    AuditEvent,
    DeploymentState,
    Labels,
    Login,
    NewAgent,
    NewAgentVersion,
    NewConnection,
    NewConnectionConfig,
    NewConnectionSecrets,
    NewDeployment,
    NewWorkspace,
    Problem,
)
from kaizen_client.types import UNSET

T = TypeVar("T")


def good(answer: T | Problem | None) -> T:
    """The body of an answer, or its problem document as an error."""
    if isinstance(answer, Problem):
        raise SystemExit(json.dumps(answer.to_dict()))
    if answer is None:
        raise SystemExit("an answer that the document does not describe")
    return answer


base, email, password = (os.environ[name] for name in ("BASE_URL", "EMAIL", "PASSWORD"))
anonymous = Client(base, raise_on_unexpected_status=True)
wrong = sign_in.sync(client=anonymous, body=Login(email=email, password="not the password"))
assert isinstance(wrong, Problem) and wrong.code == "invalid_credentials", wrong
tokens = good(sign_in.sync(client=anonymous, body=Login(email=email, password=password)))
client = AuthenticatedClient(base, token=tokens.access_token, raise_on_unexpected_status=True)
me = good(get_current_user.sync(client=client))

workspace = good(create_workspace.sync(client=client, body=NewWorkspace(name="Generated")))
labels = Labels()
labels["team"] = "support"
new = NewAgent(name="Helpdesk", workspace_id=workspace.id, labels=labels, settings=AgentSettings(model="large"))
created = create_agent.sync_detailed(client=client, body=new, idempotency_key="generated-agent")
agent = good(created.parsed)
again = good(create_agent.sync(client=client, body=new, idempotency_key="generated-agent"))
assert again.id == agent.id, "a repeat made another agent"
etag = created.headers["ETag"]
good(update_agent.sync(agent.id, client=client, body=AgentChange(description="Answers tickets."), if_match=etag))
stale = update_agent.sync_detailed(agent.id, client=client, body=AgentChange(description="Too late."), if_match=etag)
assert stale.status_code == HTTPStatus.PRECONDITION_FAILED, stale

version = good(create_agent_version.sync(agent.id, client=client, body=NewAgentVersion()))
config, secrets = NewConnectionConfig(), NewConnectionSecrets()
config["api_url"], secrets["api-key"] = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]
connection = NewConnection(name="West", plugin="nexus", config=config, secrets=secrets, environment="staging")
gateway = good(create_gateway.sync(client=client, body=connection))
good(check_gateway.sync(gateway.id, client=client))
order = NewDeployment(gateway_id=gateway.id, version=version.version)
accepted = good(deploy_agent.sync(agent.id, client=client, body=order))
while True:
    deployment = good(get_deployment.sync(accepted.deployment_id, client=client))
    if deployment.status not in (DeploymentState.QUEUED, DeploymentState.RUNNING):
        break
    time.sleep(0.05)

events: list[AuditEvent] = []
cursor: str | None = None
while True:
    page = good(list_audit_events.sync(client=client, limit=200, cursor=cursor or UNSET))
    events.extend(page.items)
    if not page.next_cursor:
        break
    cursor = page.next_cursor
print(json.dumps({
    "user": str(me.user.id),
    "status": deployment.status.value,
    "endpoint": deployment.endpoint or None,
    "actions": [event.action for event in events],
}))
