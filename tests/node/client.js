// The official client against spa serve. argv: base URL, model. Prints what it streamed as JSON.
"use strict";
const OpenAI = require("openai");

async function main() {
  const [baseURL, model] = process.argv.slice(2);
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const ask = { model, messages: [{ role: "user", content: "Why is the sky blue?" }], seed: 5, max_tokens: 24 };
  const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
  let text = "", finish = null, usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  const helper = await client.chat.completions.stream(ask).finalChatCompletion();
  const raw = await client.completions.create({ model, prompt: "The sea is", seed: 5, max_tokens: 8, stream: true });
  let continued = "";
  for await (const chunk of raw) continued += chunk.choices[0].text;
  const whole = await client.chat.completions.create(ask);
  let code = null;
  try {
    await client.chat.completions.create({ ...ask, model: "none", stream: true });
  } catch (e) {
    code = e instanceof OpenAI.NotFoundError ? e.code : String(e);
  }
  const stopped = await client.chat.completions.create({ ...ask, ignore_eos: true, max_tokens: 2000, stream: true });
  for await (const _ of stopped) break;   // leaves in the middle
  console.log(JSON.stringify({ text, finish, usage, helper: helper.choices[0].message.content, continued, whole: whole.choices[0].message.content, code }));
}

main().catch((e) => { console.error(e); process.exit(1); });
