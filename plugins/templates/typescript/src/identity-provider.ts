// {{title}}: signs people in with OpenID Connect.

import { type Call, config, type Grant, type Identity, type Manifest, type Protocol, rejected } from "./kaizen.ts";

interface Config {
  issuer: string;
  groups_claim?: string;
}

/** What the plugin is and what a connection has to fill in. It asks for nothing: the server runs the protocol. */
export const manifest = {
  describe(): Manifest {
    return {
      name: "{{name}}",
      version: "0.1.0",
      title: "{{title}}",
      description: "Signs people in with OpenID Connect.",
      configSchema: JSON.stringify({
        type: "object",
        additionalProperties: false,
        required: ["issuer", "client_id"],
        properties: {
          issuer: { type: "string", format: "uri", description: "The issuer, exactly as in its tokens." },
          client_id: { type: "string", minLength: 1, description: "This server's id at the issuer." },
          groups_claim: { type: "string", default: "groups", description: "The claim with the person's groups." },
        },
      }),
      // Only the server sends it, to the token endpoint.
      secrets: [{ name: "client-secret", description: "This server's secret at the issuer.", hosts: [] }],
      capabilities: [],
    };
  },
};

export const provider = {
  /** Which protocol to run, against whom. */
  begin(call: Call): Protocol {
    const { issuer }: Config = JSON.parse(call.config);
    if (!issuer.startsWith("https://") && !issuer.startsWith("http://")) throw config("issuer: an https:// address");
    return { tag: "oidc", val: { issuer, scopes: ["openid", "email", "profile"], parameters: [] } };
  },

  /** Who signed in. The claims are verified. */
  identify(call: Call, grant: Grant): Identity {
    if (grant.claims === undefined) throw rejected("the sign-in brought no ID token");
    const token: Record<string, unknown> = JSON.parse(grant.claims);
    const userinfo: Record<string, unknown> = JSON.parse(grant.userinfo ?? "{}");
    const claims = { ...userinfo, ...token };
    // An address counts as verified only where the document that has it says so.
    const source = text(token.email) === undefined ? userinfo : token;
    if (typeof claims.sub !== "string" || claims.sub === "") throw rejected("the ID token has no `sub`");
    const { groups_claim = "groups" }: Config = JSON.parse(call.config);
    const groups = claims[groups_claim];
    return {
      subject: claims.sub,
      email: text(source.email),
      emailVerified: source.email_verified === true,
      name: text(claims.name),
      groups: Array.isArray(groups) ? groups.filter((group) => typeof group === "string") : [],
      attributes: [],
    };
  },
};

const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : undefined);
