// Ollama's own library for JavaScript.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { base, refused, run, routes } from "./suite.mjs";

// The library shows no headers: the last answer's are kept here.
let headers;
const client = new Ollama({
  host: base,
  fetch: async (...args) => {
    const response = await fetch(...args);
    headers = response.headers;
    return response;
  },
});
const question = "what is the capital of france";
const ask = (route, more = {}) => ({ model: route.model, messages: [{ role: "user", content: question }], ...more });
const status = (wanted, words) => (e) => {
  assert.deepEqual([e.name, e.status_code], ["ResponseError", wanted], String(e));
  assert.match(e.error, words);
  return true;
};


await run("ollama", {
  async chat(route) {
    const r = await client.chat(ask(route));
    route.check(headers);
    assert.equal(r.model, route.model);
    assert.deepEqual([r.done, r.done_reason, r.message.role], [true, "stop", "assistant"]);
    assert.ok(r.message.content.length > 0);
    const one = await client.generate({ model: route.model + ":latest", prompt: question, system: "Answer in English.",
      keep_alive: "5m", options: { num_ctx: 2048, temperature: 0, seed: 1, stop: ["\n"], num_predict: 50 } });
    assert.ok(one.response.length > 0 && one.done);
    assert.equal((await client.generate({ model: route.model, prompt: "" })).done_reason, "load");
    assert.equal((await client.chat({ model: route.model, messages: [] })).done_reason, "load");
    if (route.name === "local")
      assert.equal((await client.chat(ask(route, { options: { num_predict: 2 } }))).done_reason, "length");
  },
  async stream(route) {
    for (const stream of [await client.chat(ask(route, { stream: true })),
      await client.generate({ model: route.model, prompt: question, stream: true })]) {
      route.check(headers);
      let text = "", parts = 0, last;
      for await (const part of stream) {
        text += part.message?.content ?? part.response;
        parts++;
        last = part;
      }
      assert.ok(parts > 1 && last.done && last.done_reason === "stop");
      assert.equal(text, (await client.chat(ask(route))).message.content);
    }
  },
  async usage(route) {
    const whole = await client.chat(ask(route));
    let last;
    for await (const part of await client.chat(ask(route, { stream: true }))) last = part;
    for (const r of [whole, last]) {
      assert.ok(r.prompt_eval_count > 0 && r.eval_count > 0);
      assert.ok(r.prompt_eval_duration > 0 && r.eval_duration > 0);
      assert.ok(r.total_duration >= r.prompt_eval_duration + r.eval_duration);
    }
    assert.equal(last.eval_count, whole.eval_count);
  },
  async tools(route) {
    const tools = [{ type: "function", function: { name: "look_up", description: "Looks up a capital.", parameters: {
      type: "object", properties: { country: { type: "string", enum: ["france"] } }, required: ["country"],
      additionalProperties: false } } }];
    const request = ask(route, { tools });
    // The API has no tool_choice: whether a small model calls is its own affair, and the route back is the same.
    const whole = await client.chat(request);
    let calls = whole.message.tool_calls;
    if (route.name === "cloud") {
      const streamed = [];
      for await (const part of await client.chat({ ...request, stream: true }))
        streamed.push(...(part.message.tool_calls ?? []));
      assert.deepEqual(streamed, calls);
    }
    if (route.name === "cloud" || calls)
      assert.deepEqual([calls[0].function.name, calls[0].function.arguments], ["look_up", { country: "france" }]);
    else calls = [{ function: { name: "look_up", arguments: { country: "france" } } }];
    // Without ids, as Ollama's own clients send them; on every route, as the conversation moves between tiers.
    const messages = [...request.messages,
      { role: "assistant", content: "", tool_calls: calls.map((c) => ({ function: c.function })) },
      { role: "tool", content: "paris", tool_name: "look_up" }];
    for (const next of [route, ...routes, { model: "claude" }]) {
      assert.ok((await client.chat({ ...request, model: next.model, messages })).message.role === "assistant");
    }
    if (route.name === "cloud")
      assert.match((await client.chat({ ...request, messages })).message.content, /paris/);
    await assert.rejects(client.chat({ ...request, messages: [...request.messages, { role: "tool", content: "x" }] }),
      status(400, /result/));
  },
  async structured(route) {
    const schema = { type: "object", properties: { name: { type: "string" }, big: { type: "boolean" } },
      required: ["name", "big"], additionalProperties: false };
    const value = JSON.parse((await client.chat(ask(route, { format: schema }))).message.content);
    assert.deepEqual([typeof value.name, typeof value.big], ["string", "boolean"]);
    assert.equal(typeof JSON.parse((await client.generate({ model: route.model, prompt: question, format: "json",
      options: { num_predict: 300 } })).response), "object");
  },
  async embeddings(route) {
    const length = (v) => Math.hypot(...v);
    if (route.name === "cloud") return refused(client.embed({ model: route.model, input: "a" }), (e) => e.status_code);
    const r = await client.embed({ model: route.model, input: ["the sea", "the sky"] });
    assert.equal(r.embeddings.length, 2);
    for (const v of r.embeddings) assert.ok(Math.abs(length(v) - 1) < 1e-4);
    assert.ok(r.prompt_eval_count > 0 && r.total_duration > 0);
    const one = await client.embeddings({ model: route.model, prompt: "the sea" });
    assert.deepEqual(one.embedding, r.embeddings[0]);
  },
  async models(route) {
    const { models } = await client.list();
    assert.ok(models.some((m) => m.model === route.model) && models.some((m) => m.name === "auto"));
    const shown = await client.show({ model: route.model });
    assert.ok(shown.capabilities.includes("completion"));
    if (route.name === "local") {
      assert.ok(shown.model_info["general.architecture"]);
      assert.equal((await client.ps()).models[0].name, route.model);
    }
    assert.ok((await client.version()).version);
  },
  async errors(route) {
    const image = { role: "user", content: "what is this", images: ["aaaa"] };
    await assert.rejects(client.chat(ask({ model: "nope" })), status(404, /model/));
    await assert.rejects(client.show({ model: "nope" }), status(404, /model/));
    await assert.rejects(client.chat(ask(route, { messages: [image] })), status(400, /images/));
    await assert.rejects(client.chat(ask(route, { options: { temperature: 9 } })), status(400, /temperature/));
    await assert.rejects(client.chat(ask(route, { think: true })), status(400, /think/));
    await assert.rejects(client.generate({ model: route.model, prompt: "x", raw: true }), status(400, /raw/));
  },
  async abort(route) {
    const stream = await client.chat(ask(route, { stream: true }));
    // An answer that is here whole already ends in peace.
    try {
      for await (const part of stream) stream.abort();
    } catch (e) {
      assert.equal(e.name, "AbortError");
    }
    assert.equal((await client.chat(ask(route))).done_reason, "stop");
  },
});
