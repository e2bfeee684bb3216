// A certified OpenID provider on loopback: `node oidc.mjs PORT CLIENT_ID CLIENT_SECRET REDIRECT_URI`.
// Prints its issuer once it listens. Anyone may sign in under any name, by the provider's own development pages;
// what the provider then says of them is in CLAIMS, a JSON object by login name, in the environment. ISSUER_PATH there is the
// issuer's path on its host, as providers with several tenants on one host have it.
import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, client_id, client_secret, redirect_uri] = process.argv.slice(2);
const path = process.env.ISSUER_PATH ?? '';
const issuer = `http://127.0.0.1:${port}${path}`;
const claims = JSON.parse(process.env.CLAIMS ?? '{}');

const signingKey = () => ({
  ...generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' }),
  alg: 'RS256',
  use: 'sig',
  kid: randomUUID(),
});

const build = () =>
  new Provider(issuer, {
    clients: [{
      client_id,
      client_secret,
      redirect_uris: [redirect_uri],
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }],
    jwks: { keys: [signingKey()] },
    cookies: { keys: [randomUUID()] },
    pkce: { required: () => true },
    claims: {
      openid: ['sub', 'tid', 'oid', 'hasgroups', 'xms_edov'],
      email: ['email', 'email_verified'],
      profile: ['name', 'preferred_username', 'department'],
      groups: ['groups'],
    },
    conformIdTokenClaims: false,
    findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id, ...claims[id] }) }),
    ttl: { Interaction: 600, Session: 600, Grant: 600, AccessToken: 600, IdToken: 600, AuthorizationCode: 60 },
  }).callback();

let handle = build();
createServer((request, response) => {
  // What a provider's operator does: a new signing key. Sessions begin anew with it.
  if (request.method === 'POST' && request.url === '/test/rotate-keys') {
    handle = build();
    response.writeHead(204).end();
    return;
  }
  // Mounted: what is above the provider's own paths is its base.
  if (path && request.url.startsWith(path)) {
    request.originalUrl = request.url;
    request.url = request.url.slice(path.length) || '/';
  }
  handle(request, response);
}).listen(Number(port), '127.0.0.1', () => console.log(issuer));
