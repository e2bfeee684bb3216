// The bundled audit sink `webhook`, in TypeScript: posts audit events to an address of one's own, signed.
//
// The body is {"events":[…]}, the events in order. The header `Kaizen-Signature: t=SECONDS,v1=HEX` has HMAC-SHA256, with
// the secret `signing-key`, over SECONDS.BODY. Any 2xx means that all events are stored, unless the body is JSON with
// `stored`: then that many are, from the first.

import { write } from "kaizen:plugin/log@0.1.0";
import { type Answer, type Call, config, type Event, type Manifest, rejected, revealed, send, success } from "./kaizen.ts";

interface Config {
  url: string;
  max_events?: number;
}

/** Shorter keys can be guessed. */
const SHORTEST_KEY = 16;

export const manifest = {
  describe(): Manifest {
    return {
      name: "webhook-typescript",
      version: "0.1.0",
      title: "Webhook (TypeScript)",
      description: "Posts audit events to an address, signed with HMAC-SHA256.",
      configSchema: JSON.stringify({
        type: "object",
        additionalProperties: false,
        required: ["url"],
        properties: {
          url: { type: "string", format: "uri", description: "The address that takes the events." },
          max_events: {
            type: "integer",
            minimum: 1,
            maximum: 1000,
            default: 500,
            description: "How many events at most go into one request.",
          },
        },
      }),
      secrets: [
        {
          name: "signing-key",
          description: "The key shared with the receiver, at least 16 characters. It is never sent.",
          hosts: [],
        },
      ],
      capabilities: [
        { tag: "http", val: "{config.url}" },
        { tag: "reveal-secret", val: "signing-key" },
      ],
    };
  },
};

export const sink = {
  /** Posts a batch without events. */
  async check(call: Call): Promise<string> {
    await post(call, [], call.idempotencyKey);
    return `${new URL(configuration(call).url).host} takes signed requests.`;
  },

  async deliver(call: Call, events: Event[]): Promise<number> {
    const { max_events = 500 } = configuration(call);
    let stored = 0;
    while (stored < events.length) {
      const chunk = events.slice(stored, stored + max_events);
      let now: number;
      try {
        // Names what is in it: a receiver that drops repeats must not take other events for one.
        const key = `${call.idempotencyKey}/${chunk[0].sequence}-${chunk[chunk.length - 1].sequence}`;
        now = storedOf(await post(call, chunk, key), chunk.length);
      } catch (error) {
        if (stored === 0) throw error;
        // The first chunks are stored: the rest comes again, and then tells why.
        write("warn", `stored ${stored} of ${events.length} events`);
        break;
      }
      stored += now;
      if (now < chunk.length) break;
    }
    return stored;
  },
};

const configuration = (call: Call): Config => JSON.parse(call.config);

async function post(call: Call, events: Event[], idempotencyKey: string): Promise<Answer> {
  const key = revealed("signing-key");
  if (key.length < SHORTEST_KEY) throw config(`secret \`signing-key\`: it needs at least ${SHORTEST_KEY} characters`);
  const body = `{"events":[${events.map(toJson).join(",")}]}`;
  const now = Math.floor(Date.now() / 1000);
  const answer = await send(configuration(call).url, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "kaizen-signature": `t=${now},v1=${await hmac(key, `${now}.${body}`)}`,
      "idempotency-key": idempotencyKey,
    },
    body,
  });
  // Refused events would never be delivered: that the address is wrong is for the operator to see.
  if ([405, 410].includes(answer.status)) throw config(`url: the answer is ${answer.status}`);
  return success(answer);
}

/** How many of `sent` the receiver says it stored. */
function storedOf(answer: Answer, sent: number): number {
  let said: unknown;
  try {
    said = JSON.parse(answer.text)?.stored;
  } catch {
    return sent;
  }
  if (said === undefined || said === null) return sent;
  if (typeof said === "number" && Number.isInteger(said) && said >= 0 && said <= sent) return said;
  throw rejected(`the receiver says it stored ${JSON.stringify(said)} of ${sent} events`);
}

async function hmac(key: string, text: string): Promise<string> {
  const encoder = new TextEncoder();
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await crypto.subtle.importKey("raw", encoder.encode(key), algorithm, false, ["sign"]);
  const signature = new Uint8Array(await crypto.subtle.sign("HMAC", imported, encoder.encode(text)));
  return Array.from(signature, (byte) => byte.toString(16).padStart(2, "0")).join("");
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
