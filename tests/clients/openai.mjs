// The official OpenAI SDK.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { base, run } from "./suite.mjs";

const client = new OpenAI({ baseURL: base + "/v1", apiKey: "any", maxRetries: 0 });
const question = "what is the capital of france";
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: question }], ...more });

await run("openai", {
  async chat(route) {
    const { data, response } = await client.chat.completions.create(ask(route.model)).withResponse();
    route.check(response.headers);
    assert.equal(data.object, "chat.completion");
    assert.equal(data.choices[0].finish_reason, "stop");
    assert.ok(data.choices[0].message.content.length > 0);
    assert.ok(data._request_id);
  },
  async stream(route) {
    const { data, response } = await client.chat.completions.create(ask(route.model, { stream: true })).withResponse();
    route.check(response.headers);
    let answer = "", finish = null, role = null;
    for await (const chunk of data) {
      role ??= chunk.choices[0]?.delta.role;
      answer += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    assert.deepEqual([role, finish], ["assistant", "stop"]);
    const stream = client.chat.completions.stream(ask(route.model));
    let seen = "";
    stream.on("content", (delta) => (seen += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.content, seen);
    assert.equal(seen, answer);
  },
  async usage(route) {
    const whole = await client.chat.completions.create(ask(route.model));
    assert.ok(whole.usage.prompt_tokens > 0 && whole.usage.completion_tokens > 0);
    assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
    const stream = await client.chat.completions.create(
      ask(route.model, { stream: true, stream_options: { include_usage: true } }));
    let usage = null;
    for await (const chunk of stream) usage = chunk.usage ?? usage;
    assert.deepEqual(usage, whole.usage);
    if (route.name === "local") {
      const r = await client.chat.completions.create(ask(route.model, { logprobs: true, top_logprobs: 2 }));
      assert.ok(r.choices[0].logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2));
    }
  },
  async models(route) {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert.ok(ids.includes("auto") && ids.includes(route.model), ids.join());
    assert.equal((await client.models.retrieve(route.model)).id, route.model);
  },
  async errors(route) {
    await assert.rejects(client.chat.completions.create(ask("nope")), OpenAI.NotFoundError);
    await assert.rejects(client.chat.completions.create({ model: route.model, messages: [] }), OpenAI.BadRequestError);
    await assert.rejects(client.chat.completions.create(ask(route.model, { temperature: 9 })), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError);
      assert.match(e.message, /temperature/);
      return true;
    });
  },
  async abort(route) {
    const stream = await client.chat.completions.create(ask(route.model, { stream: true }));
    for await (const chunk of stream) { stream.controller.abort(); break; }
    assert.equal((await client.chat.completions.create(ask(route.model))).choices[0].finish_reason, "stop");
  },
});
