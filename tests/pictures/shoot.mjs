// Opens the page with a dashboard in headless Chromium and writes a picture. Nothing is asked of the network.
// node shoot.mjs CHROMIUM FOLDER DASHBOARD.json PICTURE.png WIDTH HEIGHT

import { existsSync, readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const [executablePath, folder, dashboard, path, width, height] = process.argv.slice(2);
const HOST = 'http://page.invalid/';
const QUIET_MS = 1500; // until fonts have come and animations have ended
const page_ = '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">'
  + '<div id="root"></div><script src="page.js"></script>';

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
try {
  const page = await browser.newPage({ viewport: { width: Number(width), height: Number(height) }, timezoneId: 'UTC' });
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.stack));
  await page.addInitScript(`window.dashboard = ${readFileSync(dashboard, 'utf8')}`);
  await page.route('**/*', (route) => {
    const name = route.request().url().replace(HOST, '').replace('public/build/img/', 'node_modules/@grafana/ui/dist/public/img/');
    if (name === '') return route.fulfill({ body: page_, contentType: 'text/html' });
    return existsSync(`${folder}/${name}`) ? route.fulfill({ path: `${folder}/${name}` }) : route.abort();
  });
  await page.goto(HOST);
  await page.waitForTimeout(QUIET_MS);
  if (await page.getByText('No data', { exact: true }).count()) faults.push('A panel of the demo says "No data".');
  await page.screenshot({ path, animations: 'disabled' });
  if (faults.length) throw new Error(faults.join('\n'));
} finally {
  await browser.close();
}
