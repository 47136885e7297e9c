// The official OpenAI SDK: Responses.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { base, city, cities, isCity, isReport, question, result, run, tool } from "./suite.mjs";

const client = new OpenAI({ baseURL: base + "/v1", apiKey: "any", maxRetries: 0 });
const ask = (model, more = {}) => ({ model, input: question, store: false, ...more });
const tools = [tool, { name: "clock", parameters: city }].map((f) => ({ type: "function", strict: true, ...f }));
const calls = (response) => response.output.filter((item) => item.type === "function_call");

await run("openai", {
  async chat(route) {
    const { data, response } = await client.responses.create(ask(route.model)).withResponse();
    route.check(response.headers);
    assert.deepEqual([data.object, data.status, data.error, data.store], ["response", "completed", null, false]);
    assert.ok(data.output_text.length > 0);
    const long = await client.responses.create({
      model: route.model, instructions: "Answer in English.", input: [
        { role: "user", content: [{ type: "input_text", text: "hello" }] },
        { type: "message", role: "assistant", content: [{ type: "output_text", text: "hello", annotations: [] }] },
        { role: "user", content: question },
      ],
    });
    assert.equal(long.instructions, "Answer in English.");
    assert.ok(long.output_text.length > 0);
    if (route.name === "local") {
      const cut = await client.responses.create(ask(route.model, { max_output_tokens: 2 }));
      assert.deepEqual([cut.status, cut.incomplete_details.reason], ["incomplete", "max_output_tokens"]);
    }
  },
  async stream(route) {
    const { data, response } = await client.responses.create(ask(route.model, { stream: true })).withResponse();
    route.check(response.headers);
    const types = [];
    let last = null, n = 0;
    for await (const event of data) {
      assert.equal(event.sequence_number, n++);
      if (types.at(-1) !== event.type) types.push(event.type);
      last = event;
    }
    assert.deepEqual(types.map((t) => t.slice("response.".length)), [
      "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
      "content_part.done", "output_item.done", "completed",
    ]);
    assert.equal(last.response.status, "completed");
    const stream = client.responses.stream(ask(route.model));
    let seen = "";
    stream.on("response.output_text.delta", (event) => (seen += event.delta));
    const final = await stream.finalResponse();
    assert.equal(final.output_text, seen);
    assert.equal(last.response.output[0].content[0].text, seen);
  },
  async usage(route) {
    const { usage } = await client.responses.create(ask(route.model));
    assert.ok(usage.input_tokens > 0 && usage.output_tokens > 0);
    assert.equal(usage.total_tokens, usage.input_tokens + usage.output_tokens);
    const streamed = (await client.responses.stream(ask(route.model)).finalResponse()).usage;
    assert.deepEqual([streamed.input_tokens, streamed.output_tokens], [usage.input_tokens, usage.output_tokens]);
    if (route.name === "local") {
      const r = await client.responses.create(ask(route.model, {
        include: ["message.output_text.logprobs"], top_logprobs: 2,
      }));
      assert.ok(r.output[0].content[0].logprobs.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2));
    }
  },
  async tools(route) {
    const first = await client.responses.create(ask(route.model, { tools, tool_choice: "required" }));
    assert.equal(calls(first).length, 1);
    const [call] = calls(first);
    isCity(JSON.parse(call.arguments));
    const report = await client.responses.create(ask(route.model, {
      tools, tool_choice: "none", input: [
        { role: "user", content: question }, ...first.output,
        { type: "function_call_output", call_id: call.call_id, output: result },
      ],
    }));
    isReport(route, report.output_text);
    const named = ask(route.model, { tools, tool_choice: { type: "function", name: "clock" } });
    const stream = client.responses.stream(named);
    let pieces = "";
    stream.on("response.function_call_arguments.delta", (event) => (pieces += event.delta));
    const [streamed] = calls(await stream.finalResponse());
    assert.deepEqual([streamed.name, streamed.arguments], ["clock", pieces]);
    isCity(JSON.parse(pieces));
    if (route.name === "cloud") {
      const two = calls(await client.responses.stream(ask(route.model, { input: "in each", tools })).finalResponse());
      assert.deepEqual(two.map((c) => c.name), ["weather", "clock"]);
    }
  },
  async structured(route) {
    const text = { format: zodTextFormat(z.object({ city: z.enum(cities) }), "place") };
    isCity((await client.responses.parse(ask(route.model, { text }))).output_parsed);
    isCity((await client.responses.stream(ask(route.model, { text })).finalResponse()).output_parsed);
  },
  async errors(route) {
    const refused = (more, words) => assert.rejects(client.responses.create(ask(route.model, more)), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError, String(e));
      assert.match(e.message, words);
      return true;
    });
    await assert.rejects(client.responses.create(ask("nope")), OpenAI.NotFoundError);
    await refused({ input: [] }, /input/);
    await refused({ previous_response_id: "resp_1" }, /previous_response_id/);
    await refused({ store: true }, /store/);
    await refused({ stream: true, max_output_tokens: 0 }, /max_output_tokens/);
    await refused({ input: [{ role: "user", content: [{ type: "input_image", image_url: "x" }] }] }, /input\[0\]/);
    await refused({ tools: [{ type: "web_search" }] }, /tools\[0\]/);
    if (route.name === "cloud") {
      const stream = await client.responses.create(ask("broken", { stream: true }));
      await assert.rejects(async () => { for await (const event of stream); }, OpenAI.APIError);
    }
  },
  async abort(route) {
    const stream = await client.responses.create(ask(route.model, { stream: true }));
    for await (const event of stream) { stream.controller.abort(); break; }
    assert.equal((await client.responses.create(ask(route.model))).status, "completed");
  },
}, "openai, responses");
