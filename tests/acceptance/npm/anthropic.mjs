import { given, listed, load, report } from './scenarios.mjs';

const { default: Anthropic } = await load('@anthropic-ai/sdk/index.mjs');

const messages = [{ role: 'user', content: 'Hello' }];
const asked = { model: 'claude-sonnet-5-5', max_tokens: 64, messages };
const tools = [
  { name: 'weather', input_schema: { type: 'object', properties: { city: { type: 'string' } } } },
];

const table = {
  message: async (client) => {
    const { data, response, request_id } = await client.messages.create(asked).withResponse();
    return [data, response.headers.getSetCookie(), request_id];
  },
  messageStream: async (client) => {
    const events = await listed(client.messages.create({ ...asked, stream: true }));
    return [events, await client.messages.stream(asked).finalMessage()];
  },
  tools: async (client) => [
    await client.messages.create({ ...asked, tools }),
    await client.messages.stream({ ...asked, tools }).finalMessage(),
  ],
  countTokens: (client) => client.messages.countTokens({ model: asked.model, messages }),
  batches: async (client) => {
    const batch = await client.messages.batches.create({
      requests: [{ custom_id: 'one', params: asked }],
    });
    const { processing_status } = await client.messages.batches.retrieve(batch.id);
    return [batch, processing_status, await listed(client.messages.batches.results(batch.id))];
  },
  models: async (client) => [await listed(client.models.list()), await client.models.retrieve(asked.model)],
};
for (const status of given.statuses) {
  const model = `status-${status}`;
  const once = { maxRetries: 0 };
  table[model] = (client) => client.messages.create({ ...asked, model }, once);
  table[`${model} streamed`] = (client) =>
    listed(client.messages.create({ ...asked, model, stream: true }, once));
}

const own = {
  retries429: (client) => client.messages.create({ ...asked, model: 'retries-429' }),
  retries503: (client) => listed(client.messages.create({ ...asked, model: 'retries-503', stream: true })),
  badHeader: (client) => client.messages.create(asked, { headers: { 'X-Steer-Budget': '{' } }),
  noRoute: (client) => client.withOptions({ baseURL: given.nowhere }).messages.create(asked),
  unreachable: (client) => client.withOptions({ baseURL: given.unreachable }).messages.create(asked),
  timeUp: (client) =>
    client.messages.create({ ...asked, model: 'silent' }, { headers: { 'X-Steer-Timeout': '0.2' } }),
};

await report(table, own, (baseURL) => new Anthropic({ baseURL, apiKey: 'sk-caller' }));
