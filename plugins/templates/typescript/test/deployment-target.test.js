import assert from "node:assert/strict";
import { test } from "node:test";
import { target } from "../src/plugin.ts";

const call = {
  connectionId: "c1",
  config: JSON.stringify({ url: "https://agents.example.com" }),
  idempotencyKey: "k1",
  attempt: 1,
};

const release = {
  deploymentId: "d1",
  agentId: "a1",
  agentName: "Support agent",
  version: 3,
  environment: "staging",
  workflow: "{}",
  digest: "0".repeat(64),
};

/** The far side answers this, whatever it is asked. */
const answer = (t, status, body = {}) => t.mock.method(globalThis, "fetch", async () => Response.json(body, { status }));

test("the same deployment again is the same registration", async (t) => {
  const asked = answer(t, 200);
  const first = await target.deploy(call, release);
  assert.deepEqual(await target.deploy(call, release), first);
  assert.equal(asked.mock.calls[0].arguments[0], "https://agents.example.com/agents/d1");
  assert.equal(asked.mock.calls[0].arguments[1].headers.authorization, "Bearer {{secret:token}}");
});

test("what is gone is gone, and is undeployed", async (t) => {
  answer(t, 404);
  assert.deepEqual(await target.status(call, "d1"), { tag: "gone" });
  await target.undeploy(call, "d1");
});

test("an expired token is for the operator to fix", async (t) => {
  answer(t, 401);
  await assert.rejects(target.check(call), { tag: "config" });
});
