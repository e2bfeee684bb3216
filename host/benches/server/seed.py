"""seed.py BINARY BASE_URL: 100 organizations, 5 people and 10 tenant policies in each, 2,000 agents, through the API.

Writes $SEED_DIR/targets.tsv: token, agent, workspace; neighbours are of different organizations.
"""
import http.client, json, os, subprocess, sys, time
from urllib.parse import urlsplit

ORGANIZATIONS, PEOPLE, AGENTS = 100, 5, 20
PASSWORD = "seven owls read the evening news"
DEPARTMENTS, REGIONS = ["ml", "data", "platform", "ops", "research"], ["eu", "us", "ap"]
binary, base = sys.argv[1:3]
connection = http.client.HTTPConnection(urlsplit(base).netloc)


def call(method, path, body=None, token=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    while True:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status == 429:
            time.sleep(float(response.headers.get("Retry-After", "1")))
            continue
        if response.status >= 300:
            sys.exit(f"{method} {path}: {response.status} {text.decode()}")
        return json.loads(text) if text else None


def sign_in(email):
    return call("POST", "/api/v1/auth/login", {"email": email, "password": PASSWORD})["access_token"]


def policies():
    """Two conditions each; only the last of each action lets the people in, as they hold no role."""
    denied = 'principal.attributes.clearance >= 2 && principal.attributes.department == "legal"'
    granted = f"principal.attributes.clearance >= 3 && {json.dumps(DEPARTMENTS)}.contains(principal.attributes.department)"
    for action, count in (("agent.read", 4), ("agent.create", 2), ("agent.deploy", 3), ("gateway.read", 1)):
        for i in range(count):
            yield (f'@id("{action}-{i}") permit (principal, action == Kaizen::Action::"{action}", resource)\n'
                   f"when {{ {granted if i == count - 1 else denied} }};\n")


targets, begun = [], time.time()
for o in range(ORGANIZATIONS):
    owner = f"owner@org{o}.example"
    subprocess.run([binary, "admin", "create-organization", "--name", f"Organization {o}", "--owner", owner, "--password-stdin"],
                   input=PASSWORD.encode(), check=True, stdout=subprocess.DEVNULL)
    admin = sign_in(owner)
    workspace = call("POST", "/api/v1/workspaces", {"name": "Main"}, admin)["id"]
    people = []
    for p in range(PEOPLE):
        email = f"user{p}@org{o}.example"
        attributes = {"department": DEPARTMENTS[p], "region": REGIONS[p % 3], "clearance": 3 + p % 2}
        call("POST", "/api/v1/users", {"email": email, "name": f"User {p}", "password": PASSWORD, "attributes": attributes}, admin)
        people.append(email)
    policy = call("POST", "/api/v1/policies", {"name": "Main"}, admin)["id"]
    version = call("POST", f"/api/v1/policies/{policy}/versions", {"text": "\n".join(policies())}, admin)["version"]
    call("POST", f"/api/v1/policies/{policy}/activate", {"version": version}, admin)
    tokens = [sign_in(email) for email in people]
    for a in range(AGENTS):
        agent = {"name": f"Agent {a}", "description": "Answers questions about the quarterly report.", "workspace_id": workspace,
                 "settings": {"model": "large-v1", "temperature": 0.2, "max_tokens": 2048, "tools": ["search", "calculator", "sql"],
                              "system_prompt": "You are a careful analyst. " * 8}}
        token = tokens[a % PEOPLE]
        targets.append((a, o, token, call("POST", "/api/v1/agents", agent, token)["id"], workspace))
    if (o + 1) % 20 == 0:
        print(f"{o + 1} of {ORGANIZATIONS} organizations loaded, {time.time() - begun:.0f} s", flush=True)
with open(os.path.join(os.environ["SEED_DIR"], "targets.tsv"), "w") as file:
    for _, _, token, agent, workspace in sorted(targets, key=lambda t: t[:2]):
        print(token, agent, workspace, sep="\t", file=file)
