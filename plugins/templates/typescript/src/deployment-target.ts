// {{title}}: registers agents with a service that has `PUT`, `GET` and `DELETE /agents/{id}`.

import { report } from "kaizen:plugin/progress@0.1.0";
import { type Call, json, type Manifest, type Registration, type Release, secret, send, type State, success } from "./kaizen.ts";

interface Config {
  url: string;
}

/** What the plugin is, what a connection has to fill in, and what it asks for. */
export const manifest = {
  describe(): Manifest {
    return {
      name: "{{name}}",
      version: "0.1.0",
      title: "{{title}}",
      description: "Registers agents with a service of our own.",
      configSchema: JSON.stringify({
        type: "object",
        additionalProperties: false,
        required: ["url"],
        properties: {
          url: { type: "string", format: "uri", description: "The service's address." },
        },
      }),
      // The server puts it into requests to `url`'s host and to no other.
      secrets: [{ name: "token", description: "A token that the service accepts.", hosts: ["{config.url}"] }],
      // The only host this plugin may speak to.
      capabilities: [{ tag: "http", val: "{config.url}" }],
    };
  },
};

export const target = {
  /** Is the target there and are the credentials good? A sentence for the operator. */
  async check(call: Call): Promise<string> {
    success(await request(call, "GET", "agents"));
    return `${new URL(address(call, "")).host} takes agents.`;
  },

  /** The same deployment again gives the same registration: its id is the agent's name there. */
  async deploy(call: Call, release: Release): Promise<Registration> {
    report(10, `Registering ${release.agentName}`);
    const body = { name: release.agentName, environment: release.environment, workflow: JSON.parse(release.workflow) };
    success(await request(call, "PUT", `agents/${release.deploymentId}`, body));
    return { id: release.deploymentId, endpoint: address(call, `agents/${release.deploymentId}`) };
  },

  async status(call: Call, registrationId: string): Promise<State> {
    const answer = await request(call, "GET", `agents/${registrationId}`);
    if (answer.status === 404) return { tag: "gone" };
    const agent = json(success(answer)) as { state?: unknown; reason?: unknown };
    switch (agent.state) {
      case "failed":
        return { tag: "failed", val: String(agent.reason ?? "no reason given") };
      case "active":
        return { tag: "active" };
      default:
        return { tag: "pending", val: `it is ${String(agent.state ?? "starting")}` };
    }
  },

  /** Removing what is already gone succeeds. */
  async undeploy(call: Call, registrationId: string): Promise<void> {
    const answer = await request(call, "DELETE", `agents/${registrationId}`);
    if (answer.status !== 404) success(answer);
  },
};

function address(call: Call, path: string): string {
  const { url }: Config = JSON.parse(call.config);
  return `${url.replace(/\/$/, "")}/${path}`;
}

function request(call: Call, method: string, path: string, body?: object) {
  return send(address(call, path), {
    method,
    headers: {
      "content-type": "application/json",
      authorization: `Bearer ${secret("token")}`,
      "idempotency-key": call.idempotencyKey,
    },
    body: body && JSON.stringify(body),
  });
}
