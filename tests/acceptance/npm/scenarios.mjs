// Runs a table of scenarios with two clients and prints what each came to, as JSON.

import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

export const given = JSON.parse(process.argv[2]);

/** A package of tests/npm: this folder has none of its own. */
export const load = (file) => import(pathToFileURL(join(given.modules, file)));

/** Everything a stream or page brings. */
export async function listed(values) {
  const found = [];
  for await (const value of await values) found.push(value);
  return found;
}

export const hex = async (response) => Buffer.from(await response.arrayBuffer()).toString('hex');

async function told(scenario, client) {
  try {
    return (await scenario(client)) ?? null;
  } catch (error) {
    const { status, code, error: body } = error;
    return { raised: error.constructor.name, says: String(error.message), status, code, body };
  }
}

async function outcomes(table, client) {
  const found = {};
  for (const [name, scenario] of Object.entries(table)) found[name] = await told(scenario, client);
  return found;
}

/** `make(url)` gives a client; `own` is a table of what only Steer answers, run with it alone. */
export async function report(table, own, make) {
  const steered = make(given.steered);
  const found = {
    direct: await outcomes(table, make(given.direct)),
    steered: await outcomes(table, steered),
    own: await outcomes(own, steered),
  };
  process.stdout.write(JSON.stringify(found));
}
