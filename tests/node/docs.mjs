// Opens a page of API documentation in a real Chromium: `node docs.mjs CHROMIUM URL NAME`.
// NAME is what the browser takes the server on loopback for: some pages behave otherwise on "localhost". Every other name
// leads nowhere. Prints what it saw as JSON; needs no display and no network.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [executablePath, address, name] = process.argv.slice(2);
const url = new URL(address);
const { hostname } = url;
url.hostname = name;

const profile = mkdtempSync(join(tmpdir(), 'kztest-chromium-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  timeout: 60_000,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    `--host-resolver-rules=MAP ${name} ${hostname}, MAP * ~NOTFOUND, EXCLUDE ${hostname}`,
  ],
});
try {
  const page = await context.newPage();
  const [elsewhere, errors] = [[], []];
  page.on('request', (request) => {
    const to = new URL(request.url());
    if (!['data:', 'blob:'].includes(to.protocol) && to.origin !== url.origin) elsewhere.push(to.href);
  });
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
  page.on('pageerror', (error) => errors.push(String(error)));

  await page.goto(url.href, { waitUntil: 'networkidle', timeout: 30_000 });
  await page.waitForSelector('.opblock', { timeout: 30_000 });
  const operations = await page.$$eval('.opblock', (blocks) =>
    blocks.map((block) => [
      block.querySelector('.opblock-summary-method')?.textContent?.toLowerCase(),
      // The page puts invisible break points into long paths.
      block.querySelector('[data-path]')?.getAttribute('data-path'),
    ]),
  );
  // One of them opened, as a reader does: its answers are described.
  await page.locator('.opblock-summary-control').first().click({ timeout: 10_000 });
  await page.waitForSelector('.opblock.is-open .responses-table', { timeout: 10_000 });
  await page.waitForLoadState('networkidle', { timeout: 10_000 });
  console.log(JSON.stringify({ title: await page.title(), operations, elsewhere, errors }));
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
