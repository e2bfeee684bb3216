import assert from "node:assert/strict";
import { test } from "node:test";
import { sink } from "../src/plugin.ts";

const call = {
  connectionId: "c1",
  config: JSON.stringify({ url: "https://logs.example.com/intake" }),
  idempotencyKey: "k1",
  attempt: 1,
};

const event = {
  id: "e1",
  sequence: 7n,
  occurredAt: "2026-11-02T10:00:00.000000Z",
  organizationId: "o1",
  actor: "user/ada",
  action: "agent.deploy",
  target: "agent/a1",
  outcome: "success",
  details: '{"rate": 1.50, "large": 12345678901234567890}',
  hash: "0".repeat(64),
};

/** The far side answers this, whatever it is asked. */
const answer = (t, response) => t.mock.method(globalThis, "fetch", async () => response);

test("events are sent in order, with the name of the token and not the token", async (t) => {
  const asked = answer(t, new Response(null, { status: 204 }));
  assert.equal(await sink.deliver(call, [event, { ...event, sequence: 8n }]), 2);
  const [url, { headers, body }] = asked.mock.calls[0].arguments;
  assert.equal(url, "https://logs.example.com/intake");
  assert.equal(headers.authorization, "Bearer {{secret:token}}");
  // The hash covers this very text.
  assert.equal(body.split(event.details).length, 3);
  assert.deepEqual(
    JSON.parse(body).events.map(({ sequence }) => sequence),
    [7, 8],
  );
});

test("an expired token is for the operator to fix", async (t) => {
  answer(t, new Response("token expired", { status: 401 }));
  await assert.rejects(sink.deliver(call, [event]), { tag: "config" });
});

test("too many requests are tried again when the far side says", async (t) => {
  answer(t, new Response("", { status: 429, headers: { "retry-after": "7" } }));
  await assert.rejects(sink.deliver(call, [event]), { tag: "unavailable", val: { message: "the answer is 429", retryAfter: 7000n } });
});
