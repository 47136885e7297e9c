// The official OpenAI SDK against a running ternd, on both routes. Usage: node openai.mjs BASE_URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "any", maxRetries: 0 });
const ask = (text, more = {}) => ({ model: "auto", messages: [{ role: "user", content: text }], ...more });
const local = "what is the capital of france";
const cloud = "who painted the ceiling of the sistine chapel";

const tests = {
  async "models are listed"() {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert.ok(ids.includes("auto") && ids.includes("tern-nano") && ids.includes("main"), ids.join());
    assert.equal((await client.models.retrieve("tern-nano")).id, "tern-nano");
  },
  async "whole answers, both routes"() {
    for (const [route, text] of [["local", local], ["cloud", cloud]]) {
      const { data, response } = await client.chat.completions.create(ask(text)).withResponse();
      assert.equal(response.headers.get("x-tern-route"), route);
      assert.equal(data.object, "chat.completion");
      assert.equal(data.choices[0].finish_reason, "stop");
      assert.ok(data.choices[0].message.content.length > 0);
      assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
      assert.ok(data._request_id);
    }
  },
  async "streams by iteration, both routes"() {
    for (const [route, text] of [["local", local], ["cloud", cloud]]) {
      const { data, response } = await client.chat.completions
        .create(ask(text, { stream: true, stream_options: { include_usage: true } })).withResponse();
      assert.equal(response.headers.get("x-tern-route"), route);
      let answer = "", finish = null, usage = null, role = null;
      for await (const chunk of data) {
        role ??= chunk.choices[0]?.delta.role;
        answer += chunk.choices[0]?.delta.content ?? "";
        finish = chunk.choices[0]?.finish_reason ?? finish;
        usage = chunk.usage ?? usage;
      }
      assert.equal(role, "assistant");
      assert.equal(finish, "stop");
      assert.ok(answer.length > 0 && usage.completion_tokens > 0);
    }
  },
  async "the .stream() helper, both routes"() {
    for (const text of [local, cloud]) {
      const stream = client.chat.completions.stream(ask(text, { stream_options: { include_usage: true } }));
      let seen = "";
      stream.on("content", (delta) => (seen += delta));
      const final = await stream.finalChatCompletion();
      assert.equal(final.choices[0].message.content, seen);
      assert.equal(final.choices[0].finish_reason, "stop");
    }
  },
  async "logprobs"() {
    const r = await client.chat.completions.create(ask(local, { logprobs: true, top_logprobs: 2 }));
    assert.ok(r.choices[0].logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2));
  },
  async "errors have the SDK's classes"() {
    await assert.rejects(client.chat.completions.create(ask("x", { model: "nope" })), OpenAI.NotFoundError);
    await assert.rejects(client.chat.completions.create({ model: "auto", messages: [] }), OpenAI.BadRequestError);
    await assert.rejects(client.chat.completions.create(ask("x", { temperature: 9 })), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError);
      assert.match(e.message, /temperature/);
      return true;
    });
  },
  async "an aborted stream ends"() {
    for (const text of [local, cloud]) {
      const stream = await client.chat.completions.create(ask(text, { stream: true }));
      for await (const chunk of stream) { stream.controller.abort(); break; }
    }
    assert.equal((await client.chat.completions.create(ask(local))).choices[0].finish_reason, "stop");
  },
};

let failed = 0;
for (const [name, fn] of Object.entries(tests)) {
  try {
    await fn();
    console.log(`ok    ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAIL  ${name}\n${e.stack}`);
  }
}
process.exit(failed ? 1 : 0);
