// Is a webhook of Kaizen Studio's genuine? As a command: SIGNING_KEY=… node verify.mjs "$KAIZEN_SIGNATURE" < body
import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

/** Seconds that the sender's clock may be off, and that a recorded request stays good. */
const TOLERANCE = 300;

/** `header` is `Kaizen-Signature`, `body` a Buffer as it came (before any parsing), `now` seconds since 1970. */
export function verify(signingKey, header, body, now) {
  const key = signingKey.startsWith("whsec_") ? Buffer.from(signingKey.slice(6), "base64") : Buffer.from(signingKey);
  const fields = new Map(header.split(",").map((part) => [part.split("=")[0], part.slice(part.indexOf("=") + 1)]));
  const timestamp = fields.get("t") ?? "";
  if (!/^\d{1,15}$/.test(timestamp) || Math.abs(now - Number(timestamp)) > TOLERANCE) return false;
  const expected = Buffer.from(createHmac("sha256", key).update(`${timestamp}.`).update(body).digest("hex"));
  const given = Buffer.from(fields.get("v1") ?? "");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const genuine = verify(process.env.SIGNING_KEY, process.argv[2], readFileSync(0), Date.now() / 1000);
  process.exit(genuine ? 0 : 1);
}
