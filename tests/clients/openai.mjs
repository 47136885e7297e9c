// The official OpenAI SDK: Chat Completions, Completions, Embeddings.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { base, city, cities, isCity, isReport, question, refused, result, run, tool } from "./suite.mjs";

const client = new OpenAI({ baseURL: base + "/v1", apiKey: "any", maxRetries: 0 });
const chat = client.chat.completions;
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: question }], ...more });
const other = { name: "clock", parameters: city };
const tools = [tool, other].map((f) => ({ type: "function", function: f }));

await run("openai", {
  async chat(route) {
    const { data, response } = await chat.create(ask(route.model)).withResponse();
    route.check(response.headers);
    assert.equal(data.object, "chat.completion");
    assert.equal(data.choices[0].finish_reason, "stop");
    assert.ok(data.choices[0].message.content.length > 0);
    assert.ok(data._request_id);
    const text = await client.completions.create({ model: route.model, prompt: question });
    assert.deepEqual([text.object, text.choices[0].finish_reason], ["text_completion", "stop"]);
    assert.equal(text.choices[0].text, data.choices[0].message.content);
  },
  async stream(route) {
    const { data, response } = await chat.create(ask(route.model, { stream: true })).withResponse();
    route.check(response.headers);
    let answer = "", finish = null, role = null;
    for await (const chunk of data) {
      role ??= chunk.choices[0]?.delta.role;
      answer += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    assert.deepEqual([role, finish], ["assistant", "stop"]);
    const stream = chat.stream(ask(route.model));
    let seen = "";
    stream.on("content", (delta) => (seen += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.content, seen);
    assert.equal(seen, answer);
    let text = "";
    for await (const c of await client.completions.create({ model: route.model, prompt: question, stream: true }))
      text += c.choices[0].text;
    assert.equal(text, answer);
  },
  async usage(route) {
    const whole = await chat.create(ask(route.model));
    assert.ok(whole.usage.prompt_tokens > 0 && whole.usage.completion_tokens > 0);
    assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
    assert.ok(whole.usage.prompt_tokens_details.cached_tokens <= whole.usage.prompt_tokens);
    const counts = (u) => [u.prompt_tokens, u.completion_tokens, u.total_tokens];
    let usage = null;
    for await (const c of await chat.create(ask(route.model, { stream: true, stream_options: { include_usage: true } })))
      usage = c.usage ?? usage;
    assert.deepEqual(counts(usage), counts(whole.usage));
    if (route.name === "local") {
      const r = await chat.create(ask(route.model, { logprobs: true, top_logprobs: 2 }));
      assert.ok(r.choices[0].logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2));
    }
  },
  async tools(route) {
    const wanted = { tools, tool_choice: "required" };
    const first = (await chat.create(ask(route.model, wanted))).choices[0];
    assert.equal(first.finish_reason, "tool_calls");
    assert.equal(first.message.tool_calls.length, 1);
    const [call] = first.message.tool_calls;
    assert.equal(call.type, "function");
    isCity(JSON.parse(call.function.arguments));
    const messages = [...ask().messages, first.message, { role: "tool", tool_call_id: call.id, content: result }];
    const report = (await chat.create({ model: route.model, messages, tools, tool_choice: "none" })).choices[0];
    assert.equal(report.finish_reason, "stop");
    isReport(route, report.message.content);

    const named = { tools, tool_choice: { type: "function", function: { name: "clock" } } };
    const streamed = (await chat.stream(ask(route.model, named)).finalChatCompletion()).choices[0];
    assert.equal(streamed.finish_reason, "tool_calls");
    assert.deepEqual(streamed.message.tool_calls.map((c) => c.function.name), ["clock"]);
    isCity(JSON.parse(streamed.message.tool_calls[0].function.arguments));
    const parsed = await chat.parse(ask(route.model, {
      tools: [zodFunction({ name: "weather", parameters: z.object({ city: z.enum(cities) }) })], tool_choice: "required",
    }));
    isCity(parsed.choices[0].message.tool_calls[0].function.parsed_arguments);
    if (route.name === "cloud") {
      const each = { model: route.model, messages: [{ role: "user", content: "in each" }], tools };
      const two = (await chat.stream(each).finalChatCompletion()).choices[0].message.tool_calls;
      assert.deepEqual(two.map((c) => c.function.name), ["weather", "clock"]);
      two.forEach((c) => isCity(JSON.parse(c.function.arguments)));
      const one = (await chat.create({ ...each, parallel_tool_calls: false })).choices[0].message.tool_calls;
      assert.equal(one.length, 1);
    }
  },
  async structured(route) {
    const response_format = zodResponseFormat(z.object({ city: z.enum(cities) }), "place");
    const parsed = await chat.parse(ask(route.model, { response_format }));
    isCity(parsed.choices[0].message.parsed);
    const streamed = await chat.stream(ask(route.model, { response_format })).finalChatCompletion();
    isCity(streamed.choices[0].message.parsed);
    const object = await chat.create(ask(route.model, { response_format: { type: "json_object" } }));
    assert.equal(typeof JSON.parse(object.choices[0].message.content), "object");
  },
  async embeddings(route) {
    const input = ["hello", "good morning", "hello"];
    if (route.name === "cloud") return refused(client.embeddings.create({ model: route.model, input }));
    const vectors = await client.embeddings.create({ model: route.model, input });
    const [a, b, c] = vectors.data.map((d) => d.embedding);
    assert.ok(Math.abs(a.reduce((sum, v) => sum + v * v, 0) - 1) < 1e-4);
    assert.deepEqual(a, c);
    assert.notDeepEqual(a, b);
    assert.ok(vectors.usage.prompt_tokens >= 3);
    const plain = await client.embeddings.create({ model: route.model, input: "hello", encoding_format: "float" });
    assert.ok(plain.data[0].embedding.every((v, i) => Math.abs(v - a[i]) < 1e-6));
  },
  async models(route) {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert.ok(ids.includes("auto") && ids.includes(route.model), ids.join());
    assert.equal((await client.models.retrieve(route.model)).id, route.model);
  },
  async errors(route) {
    const bad = (more, words) => assert.rejects(chat.create(ask(route.model, more)), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError, String(e));
      assert.match(e.message, words);
      assert.ok(e.type === "invalid_request_error" && e.code && e.requestID);
      return true;
    });
    await assert.rejects(chat.create(ask("nope")), OpenAI.NotFoundError);
    await bad({ messages: [] }, /messages/);
    await bad({ temperature: 9 }, /temperature/);
    await bad({ n: 2 }, /n: /);
    await bad({ stream: true, tools: [{ type: "function", function: { name: "two words" } }] }, /tools\[0\]/);
    await bad({ messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] }, /image_url/);
    await assert.rejects(client.completions.create({ model: route.model, prompt: "x", echo: true }), /echo/);
    if (route.name === "cloud") {
      const stream = await chat.create(ask("broken", { stream: true }));
      await assert.rejects(async () => { for await (const chunk of stream); }, OpenAI.APIError);
    }
  },
  async abort(route) {
    const stream = await chat.create(ask(route.model, { stream: true }));
    for await (const chunk of stream) { stream.controller.abort(); break; }
    assert.equal((await chat.create(ask(route.model))).choices[0].finish_reason, "stop");
  },
});
