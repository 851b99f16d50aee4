import { given, hex, listed, load, report } from './scenarios.mjs';

const { default: OpenAI, toFile } = await load('openai/index.mjs');

const messages = [{ role: 'user', content: 'Hello' }];
const chat = { model: 'gpt-4o', messages };
const parameters = { type: 'object', properties: { city: { type: 'string' } } };
const tools = [{ type: 'function', function: { name: 'weather', parameters } }];
const sound = () => toFile(Buffer.alloc(5000, 'ab'), 'hello.mp3');
const large = Buffer.alloc(2_000_000, '{"a": 1}\r\n');

const table = {
  chat: async (client) => {
    const { data, response, request_id } = await client.chat.completions.create(chat).withResponse();
    return [data, response.headers.getSetCookie(), response.headers.get('date'), request_id];
  },
  chatStream: (client) =>
    listed(
      client.chat.completions.create({
        ...chat,
        stream: true,
        stream_options: { include_usage: true },
      }),
    ),
  tools: async (client) => {
    const plain = await client.chat.completions.create({ ...chat, tools });
    const stream = client.chat.completions.stream({ ...chat, tools });
    return [plain, await stream.finalChatCompletion()];
  },
  responses: async (client) => {
    const plain = await client.responses.create({ model: 'm', input: 'Hello' });
    const events = await listed(client.responses.create({ model: 'm', input: 'Hello', stream: true }));
    const queued = await client.responses.create({ model: 'm', input: 'Later', background: true });
    const found = await client.responses.retrieve(queued.id);
    return [plain, events, queued, found, await client.responses.delete(queued.id)];
  },
  embeddings: (client) => client.embeddings.create({ model: 'm', input: ['a', 'b'], dimensions: 5 }),
  speech: async (client) =>
    hex(await client.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: 'Hello you' })),
  transcription: async (client) =>
    client.audio.transcriptions.create({ model: 'whisper-1', file: await sound() }),
  transcriptionStream: async (client) =>
    listed(
      client.audio.transcriptions.create({ model: 'm', file: await sound(), stream: true }),
    ),
  images: (client) => client.images.generate({ model: 'gpt-image-1', prompt: 'A wall' }),
  moderations: (client) => client.moderations.create({ input: ['a', 'b'] }),
  files: async (client) => {
    const file = await client.files.create({ file: await toFile(large, 'in.jsonl'), purpose: 'batch' });
    const content = Buffer.from(await (await client.files.content(file.id)).arrayBuffer());
    const all = await listed(client.files.list());
    return [file, content.equals(large), all, await client.files.delete(file.id)];
  },
  batches: async (client) => {
    const batch = await client.batches.create({
      input_file_id: 'file-1',
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
    });
    return [batch, await client.batches.retrieve(batch.id), await client.batches.cancel(batch.id)];
  },
  models: async (client) => [await listed(client.models.list()), await client.models.retrieve('gpt-4o')],
  aborted: async (client) => {
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      return chunk;
    }
  },
};
for (const status of given.statuses) {
  const model = `status-${status}`;
  const once = { maxRetries: 0 };
  table[model] = (client) => client.chat.completions.create({ ...chat, model }, once);
  table[`${model} streamed`] = (client) =>
    listed(client.chat.completions.create({ ...chat, model, stream: true }, once));
}

const own = {
  retries429: (client) => client.chat.completions.create({ ...chat, model: 'retries-429' }),
  retries503: (client) =>
    listed(client.chat.completions.create({ ...chat, model: 'retries-503', stream: true })),
  badHeader: (client) =>
    client.chat.completions.create(chat, { headers: { 'X-Steer-Budget': '{' } }),
  noRoute: (client) => client.withOptions({ baseURL: given.nowhere }).chat.completions.create(chat),
  unreachable: (client) =>
    client.withOptions({ baseURL: given.unreachable }).chat.completions.create(chat),
  timeUp: (client) =>
    client.chat.completions.create({ ...chat, model: 'silent' }, { headers: { 'X-Steer-Timeout': '0.2' } }),
};

await report(table, own, (baseURL) => new OpenAI({ baseURL, apiKey: 'sk-caller' }));
