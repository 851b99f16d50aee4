// Calls with a key, by one SDK: what each comes to, and what every try of the SDK was told.

import { given, listed, load } from './scenarios.mjs';

const messages = [{ role: 'user', content: 'Hello' }];
const keyed = (key) => ({ headers: { 'Idempotency-Key': key } });

const sdks = {
  openai: {
    file: 'openai/index.mjs',
    ask: async (client, model, key, stream) => {
      const answer = client.chat.completions.create({ model, messages, stream }, keyed(key));
      if (!stream) return (await answer).choices[0].message.content;
      return (await listed(answer)).map((each) => each.choices[0]?.delta?.content ?? '').join('');
    },
  },
  anthropic: {
    file: '@anthropic-ai/sdk/index.mjs',
    ask: async (client, model, key, stream) => {
      const body = { model, max_tokens: 64, messages };
      if (stream) return client.messages.stream(body, keyed(key)).finalText();
      return (await client.messages.create(body, keyed(key))).content[0].text;
    },
  },
};

const { file, ask } = sdks[given.sdk];
const { default: Client } = await load(file);
let told = [];

async function listening(url, init) {
  const response = await fetch(url, init);
  told.push(response.headers.get('idempotency-status') ?? String(response.status));
  return response;
}

const make = (options) =>
  new Client({ baseURL: given.url, apiKey: 'sk-caller', fetch: listening, ...options });
const client = make({});

async function outcome(work) {
  told = [];
  try {
    return { text: await work(), told };
  } catch (error) {
    return { raised: error.constructor.name, says: String(error.message), status: error.status, told };
  }
}

const found = {};
for (const stream of [false, true]) {
  const one = (name, model, key, from = client) =>
    outcome(() => ask(from, model, `${key}-${stream}`, stream)).then((value) => {
      found[`${name}${stream ? ' streamed' : ''}`] = value;
    });
  const texts = [];
  const five = Array.from({ length: 5 }, async () =>
    texts.push(await ask(client, 'slow', `a-${stream}`, stream)),
  );
  await outcome(() => Promise.all(five));
  found[`together${stream ? ' streamed' : ''}`] = { text: texts.join('|') };
  await one('again', 'slow', 'a');
  await one('another request', 'm', 'a');
  await one('lost', 'lost', 'b');
  await one('uncertain', 'lost', 'b');
  await one('broken', stream ? 'broken' : 'half', 'c');
  await one('patient', 'late', 'd', make({ timeout: 1000 }));
}
process.stdout.write(JSON.stringify(found));
