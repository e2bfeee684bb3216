import assert from "node:assert/strict";
import { test } from "node:test";
import { provider } from "../src/plugin.ts";

const call = {
  connectionId: "c1",
  config: JSON.stringify({ issuer: "https://id.example.com", client_id: "kaizen" }),
  idempotencyKey: "k1",
  attempt: 1,
};

const identify = (claims) => provider.identify(call, { claims: JSON.stringify(claims) });

test("an address is verified only where the claim says so", () => {
  const claims = { sub: "1", email: "ada@example.com" };
  assert.equal(identify({ ...claims, email_verified: true }).emailVerified, true);
  for (const said of [undefined, false, "true", 1]) {
    assert.equal(identify({ ...claims, email_verified: said }).emailVerified, false);
  }
});

test("groups of another type are none", () => {
  assert.deepEqual(identify({ sub: "1", groups: ["engineering", 7] }).groups, ["engineering"]);
  assert.deepEqual(identify({ sub: "1", groups: "engineering" }).groups, []);
});

test("nobody signs in without a subject", () => {
  assert.throws(() => identify({ email: "ada@example.com" }), { tag: "rejected" });
});
