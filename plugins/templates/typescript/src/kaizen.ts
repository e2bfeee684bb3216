// The types of wit/ and what every plugin needs: requests, and errors that say whether another attempt is worth it.

import { reveal } from "kaizen:plugin/secrets@0.1.0";

/** One call from the server. The instance lives for this call only. */
export interface Call {
  connectionId: string;
  /** JSON, already valid against the manifest's schema. */
  config: string;
  /** The same for every attempt at the same piece of work. */
  idempotencyKey: string;
  /** 1 for the first attempt. */
  attempt: number;
}

export interface SecretSlot {
  name: string;
  description: string;
  hosts: string[];
}

export type Capability =
  | { tag: "http"; val: string }
  | { tag: "tcp"; val: string }
  | { tag: "directory"; val: string }
  | { tag: "reveal-secret"; val: string };

export interface Manifest {
  name: string;
  version: string;
  title: string;
  description: string;
  /** JSON Schema, draft 2020-12. */
  configSchema: string;
  secrets: SecretSlot[];
  capabilities: Capability[];
}

export interface Event {
  id: string;
  sequence: bigint;
  occurredAt: string;
  organizationId: string;
  actor: string;
  action: string;
  target: string;
  outcome: "success" | "denied" | "failure";
  /** JSON. */
  details: string;
  hash: string;
}

export interface Release {
  deploymentId: string;
  agentId: string;
  agentName: string;
  version: number;
  environment: string;
  /** JSON, `kaizen.workflow.v1`. */
  workflow: string;
  digest: string;
}

export interface Registration {
  id: string;
  endpoint?: string;
}

export type State = { tag: "pending"; val: string } | { tag: "active" } | { tag: "failed"; val: string } | { tag: "gone" };

export type Protocol =
  | { tag: "oidc"; val: { issuer: string; scopes: string[]; parameters: [string, string][] } }
  | {
      tag: "oauth2";
      val: {
        authorizationEndpoint: string;
        tokenEndpoint: string;
        scopes: string[];
        parameters: [string, string][];
      };
    };

export interface Grant {
  claims?: string;
  userinfo?: string;
}

export interface Identity {
  subject: string;
  email?: string;
  emailVerified: boolean;
  name?: string;
  groups: string[];
  /** JSON values; `null` takes one away that was there at an earlier sign-in. */
  attributes: [string, string][];
}

/** Thrown, it is what the function returns as its error. */
export type PluginError =
  | { tag: "config"; val: string }
  | { tag: "rejected"; val: string }
  | { tag: "unavailable"; val: { message: string; retryAfter?: bigint } }
  | { tag: "internal"; val: string };

/** The configuration cannot work; an operator must change it. Never retried. */
export const config = (message: string): PluginError => ({ tag: "config", val: message });
/** The far side refused this piece of work. Never retried. */
export const rejected = (message: string): PluginError => ({ tag: "rejected", val: message });
/** Worth another attempt, after so many milliseconds where the far side said so. */
export const unavailable = (message: string, retryAfter?: number): PluginError => ({
  tag: "unavailable",
  val: { message, retryAfter: retryAfter === undefined ? undefined : BigInt(Math.round(retryAfter)) },
});

/** Stands for a secret in a request's header; the server puts the value in, only towards the slot's hosts. */
export const secret = (name: string): string => `{{secret:${name}}}`;

/** A secret that the plugin must compute with. */
export function revealed(name: string): string {
  try {
    return reveal(name);
  } catch (error) {
    throw config(`secret \`${name}\`: ${(error as { payload?: string }).payload ?? String(error)}`);
  }
}

/** One answer, whole. */
export interface Answer {
  status: number;
  headers: Headers;
  text: string;
}

/** More than this is not read from an answer. */
const LARGEST = 1 << 20;

/** Milliseconds that a whole exchange may take. The server ends the call at a limit of its own, and says less. */
const PATIENCE = 10_000;

/**
 * Sends a request and reads the answer, whatever its status. A connection that fails or breaks off is worth another attempt.
 * Redirects are not followed.
 */
export async function send(url: string, init: RequestInit): Promise<Answer> {
  let response: Response;
  const parts: Uint8Array[] = [];
  let size = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`it is not complete within ${PATIENCE} ms`)), PATIENCE);
  });
  try {
    response = await Promise.race([fetch(url, init), late]);
    const reader = response.body?.getReader();
    while (reader && size <= LARGEST) {
      const { done, value } = await Promise.race([reader.read(), late]);
      if (done) break;
      parts.push(value);
      size += value.length;
    }
  } catch (error) {
    throw unavailable(`no answer: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    clearTimeout(timer);
  }
  if (size > LARGEST) throw rejected(`the answer is larger than ${LARGEST} bytes`);
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return { status: response.status, headers: response.headers, text: new TextDecoder().decode(bytes) };
}

/** The answer, if it is 2xx; otherwise throws who has to act: nobody yet (another attempt), the operator, or the sender. */
export function success(answer: Answer): Answer {
  const { status } = answer;
  if (status >= 200 && status < 300) return answer;
  const message = `the answer is ${status}`;
  if (status === 408 || status === 425 || status === 429 || status >= 500) throw unavailable(message, retryAfter(answer));
  if ((status >= 300 && status < 400) || [401, 403, 404, 407].includes(status)) throw config(message);
  throw rejected(message);
}

/** The answer's body as JSON. */
export function json(answer: Answer): unknown {
  try {
    return JSON.parse(answer.text);
  } catch {
    throw rejected(`the answer (${answer.status} with ${answer.text.length} characters) is not JSON`);
  }
}

/** `Retry-After` in milliseconds: seconds, or a date, which is compared with the far side's own clock. */
function retryAfter({ headers }: Answer): number | undefined {
  const value = headers.get("retry-after");
  if (value === null) return undefined;
  // Nine digits are thirty years, and fit into what the server takes.
  if (/^\d+$/.test(value.trim())) return Number(value.trim().slice(0, 9)) * 1000;
  const until = Date.parse(value);
  const now = Date.parse(headers.get("date") ?? "");
  const wait = until - (Number.isNaN(now) ? Date.now() : now);
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}
