// Plays the product's main job with the client that openapi-typescript makes of host/openapi.json, and openapi-fetch:
// somebody signs in, draws up an agent, deploys it, and finds it in the audit trail. Every type comes from the document.
import createClient, { type Middleware } from 'openapi-fetch';
import type { components, paths } from './api.ts';

type Deployment = components['schemas']['Deployment'];

const { BASE_URL, EMAIL, PASSWORD, GATEWAY_URL, GATEWAY_KEY } = process.env as Record<string, string>;
const client = createClient<paths>({ baseUrl: BASE_URL });

/** The body of an answer, or its problem document as an error. */
function good<T>(answer: { data?: T; error?: components['schemas']['Problem'] | string; response: Response }): T {
  if (answer.data === undefined) throw new Error(`${answer.response.url}: ${JSON.stringify(answer.error)}`);
  return answer.data;
}

const wrong = await client.POST('/api/v1/auth/login', { body: { email: EMAIL, password: 'not the password' } });
if (wrong.response.status !== 401 || typeof wrong.error !== 'object' || wrong.error.code !== 'invalid_credentials') {
  throw new Error(`a wrong password: ${wrong.response.status}`);
}
const tokens = good(await client.POST('/api/v1/auth/login', { body: { email: EMAIL, password: PASSWORD } }));
const authenticate: Middleware = {
  onRequest: ({ request }) => request.headers.set('Authorization', `Bearer ${tokens.access_token}`),
};
client.use(authenticate);
const me = good(await client.GET('/api/v1/auth/me'));

const workspace = good(await client.POST('/api/v1/workspaces', { body: { name: 'Generated' } }));
const created = await client.POST('/api/v1/agents', {
  params: { header: { 'Idempotency-Key': 'generated-agent' } },
  body: { name: 'Helpdesk', workspace_id: workspace.id, labels: { team: 'support' }, settings: { model: 'large' } },
});
const agent = good(created);
const again = await client.POST('/api/v1/agents', {
  params: { header: { 'Idempotency-Key': 'generated-agent' } },
  body: { name: 'Helpdesk', workspace_id: workspace.id, labels: { team: 'support' }, settings: { model: 'large' } },
});
if (good(again).id !== agent.id) throw new Error('a repeat made another agent');
const path = { id: agent.id };
const changed = await client.PATCH('/api/v1/agents/{id}', {
  params: { path, header: { 'If-Match': created.response.headers.get('ETag') ?? '' } },
  body: { description: 'Answers tickets.' },
});
good(changed);
const stale = await client.PATCH('/api/v1/agents/{id}', {
  params: { path, header: { 'If-Match': created.response.headers.get('ETag') ?? '' } },
  body: { description: 'Too late.' },
});
if (stale.response.status !== 412) throw new Error(`a stale ETag: ${stale.response.status}`);

const version = good(await client.POST('/api/v1/agents/{id}/versions', { params: { path }, body: {} }));
const gateway = good(
  await client.POST('/api/v1/gateways', {
    body: {
      name: 'West',
      plugin: 'nexus',
      config: { api_url: GATEWAY_URL },
      secrets: { 'api-key': GATEWAY_KEY },
      environment: 'staging',
    },
  }),
);
good(await client.POST('/api/v1/gateways/{id}/check', { params: { path: { id: gateway.id } } }));
const accepted = good(
  await client.POST('/api/v1/agents/{id}/deploy', { params: { path }, body: { gateway_id: gateway.id, version: version.version } }),
);
let deployment: Deployment;
for (;;) {
  deployment = good(
    await client.GET('/api/v1/deployments/{id}', { params: { path: { id: accepted.deployment_id } } }),
  );
  if (deployment.status !== 'queued' && deployment.status !== 'running') break;
  await new Promise((resolve) => setTimeout(resolve, 50));
}

const events: components['schemas']['AuditEvent'][] = [];
for (let cursor: string | undefined; ; ) {
  const page = good(await client.GET('/api/v1/audit/events', { params: { query: { limit: 200, cursor } } }));
  events.push(...page.items);
  if (page.next_cursor == null) break;
  cursor = page.next_cursor;
}
console.log(
  JSON.stringify({ user: me.user.id, status: deployment.status, endpoint: deployment.endpoint, actions: events.map((event) => event.action) }),
);
