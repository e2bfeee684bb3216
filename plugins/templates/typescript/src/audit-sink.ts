// {{title}}: sends audit events to an address, as JSON.

import { type Call, type Event, type Manifest, secret, send, success } from "./kaizen.ts";

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
      description: "Sends audit events to an address, as JSON.",
      configSchema: JSON.stringify({
        type: "object",
        additionalProperties: false,
        required: ["url"],
        properties: {
          url: { type: "string", format: "uri", description: "The address that takes the events." },
        },
      }),
      // The server puts it into requests to `url`'s host and to no other.
      secrets: [{ name: "token", description: "A token that the address accepts.", hosts: ["{config.url}"] }],
      // The only host this plugin may speak to.
      capabilities: [{ tag: "http", val: "{config.url}" }],
    };
  },
};

export const sink = {
  /** Does the sink take events? A sentence for the operator. */
  async check(call: Call): Promise<string> {
    await post(call, []);
    return `${new URL(config(call).url).host} takes events.`;
  },

  /** Returns how many events, from the first, are stored; the rest comes again. */
  async deliver(call: Call, events: Event[]): Promise<number> {
    await post(call, events);
    return events.length;
  },
};

const config = (call: Call): Config => JSON.parse(call.config);

async function post(call: Call, events: Event[]): Promise<void> {
  success(
    await send(config(call).url, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        authorization: `Bearer ${secret("token")}`,
        "idempotency-key": call.idempotencyKey,
      },
      body: `{"events":[${events.map(toJson).join(",")}]}`,
    }),
  );
}

/** One event as JSON. Its hash covers the exact text of `details`, which is put in as it is: parsed and written again, `1.50` would be `1.5`. */
function toJson(event: Event): string {
  const rest = JSON.stringify({
    id: event.id,
    sequence: Number(event.sequence),
    occurred_at: event.occurredAt,
    organization_id: event.organizationId,
    actor: event.actor,
    action: event.action,
    target: event.target,
    outcome: event.outcome,
    hash: event.hash,
  });
  return `${rest.slice(0, -1)},"details":${event.details}}`;
}
