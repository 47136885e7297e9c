// Anthropic's SDK.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { base, refused, run, routes } from "./suite.mjs";

const client = new Anthropic({ baseURL: base, apiKey: "any", maxRetries: 0 });
const question = "what is the capital of france";
const ask = (route, more = {}) => ({
  model: route.model, max_tokens: 100, messages: [{ role: "user", content: question }], ...more,
});
const text = (message) => message.content.filter((b) => b.type === "text").map((b) => b.text).join("");
const create = (route, more) => client.messages.create(ask(route, more));
const status = (wanted, type) => (e) => {
  assert.ok(e instanceof Anthropic.APIError, String(e));
  assert.deepEqual([e.status, e.type], [wanted, type]);
  assert.ok(e.requestID);
  return true;
};


await run("@anthropic-ai/sdk", {
  async chat(route) {
    const { data, response } = await client.messages.create(ask(route)).withResponse();
    route.check(response.headers);
    assert.equal(data.type, "message");
    assert.equal(data.stop_reason, "end_turn");
    assert.ok(text(data).length > 0);
    assert.ok(data._request_id);
    // Blocks, a system prompt, earlier turns.
    const more = await client.messages.create(ask(route, {
      system: [{ type: "text", text: "Answer in English." }],
      messages: [
        { role: "user", content: [{ type: "text", text: "hello" }] },
        { role: "assistant", content: [{ type: "text", text: "hello" }] },
        { role: "user", content: [{ type: "text", text: question, cache_control: { type: "ephemeral" } }] },
      ],
      metadata: { user_id: "x" }, temperature: 0, top_p: 1, top_k: 5,
    }));
    assert.ok(text(more).length > 0);
    const stopped = await create(route, { max_tokens: 1 });
    if (route.name === "local") {
      assert.equal(stopped.stop_reason, "max_tokens");
      const cut = await create(route, { stop_sequences: [" is"] });
      assert.deepEqual([cut.stop_reason, cut.stop_sequence], ["stop_sequence", " is"]);
      assert.ok(!text(cut).includes(" is"));
    }
  },
  async stream(route) {
    const { data, response } = await create(route, { stream: true }).withResponse();
    route.check(response.headers);
    const types = [];
    for await (const event of data) if (types.at(-1) !== event.type) types.push(event.type);
    assert.deepEqual(types, ["message_start", "content_block_start", "content_block_delta", "content_block_stop",
      "message_delta", "message_stop"]);
    const stream = client.messages.stream(ask(route));
    let seen = "";
    stream.on("text", (delta) => (seen += delta));
    const final = await stream.finalMessage();
    assert.equal(text(final), seen);
    assert.equal(seen, text(await client.messages.create(ask(route))));
    assert.equal(final.stop_reason, "end_turn");
  },
  async usage(route) {
    const whole = await client.messages.create(ask(route));
    assert.ok(whole.usage.input_tokens + whole.usage.cache_read_input_tokens > 0 && whole.usage.output_tokens > 0);
    const final = await client.messages.stream(ask(route)).finalMessage();
    const total = (u) => [u.input_tokens + u.cache_read_input_tokens, u.output_tokens];
    assert.deepEqual(total(final.usage), total(whole.usage));
  },
  async tools(route) {
    const tools = [{
      name: "look_up", description: "Looks up a capital.",
      input_schema: { type: "object", properties: { country: { type: "string", enum: ["france", "spain"] } },
        required: ["country"], additionalProperties: false },
    }];
    const messages = [{ role: "user", content: question }];
    const request = ask(route, { messages, tools, tool_choice: { type: "any" } });
    const whole = await client.messages.create(request);
    const final = await client.messages.stream(request).finalMessage();
    for (const m of [whole, final]) {
      assert.equal(m.stop_reason, "tool_use");
      const call = m.content.find((b) => b.type === "tool_use");
      assert.equal(call.name, "look_up");
      assert.ok(call.id && ["france", "spain"].includes(call.input.country), JSON.stringify(call));
    }
    const named = await client.messages.create({ ...request, tool_choice: { type: "tool", name: "look_up" } });
    assert.equal(named.stop_reason, "tool_use");
    // The result goes back, here and then on every other route: the conversation moves between tiers as it is.
    const call = whole.content.find((b) => b.type === "tool_use");
    messages.push({ role: "assistant", content: whole.content }, { role: "user", content: [
      { type: "tool_result", tool_use_id: call.id, content: [{ type: "text", text: "paris" }] },
      { type: "text", text: "so what is it" }] });
    for (const next of [route, ...routes, { model: "claude" }]) {
      const answer = await client.messages.create({ ...request, model: next.model, tool_choice: { type: "none" } });
      assert.ok(text(answer).length > 0);
      assert.notEqual(answer.stop_reason, "tool_use");
    }
    await assert.rejects(client.messages.create({ ...request, messages: [{ role: "user", content: [
      { type: "tool_result", tool_use_id: "toolu_nobody", content: "x" }] }] }), status(400, "invalid_request_error"));
  },
  async structured(route) {
    const schema = { type: "object", properties: { name: { type: "string" }, big: { type: "boolean" } },
      required: ["name", "big"], additionalProperties: false };
    const request = ask(route, { output_config: { format: { type: "json_schema", schema } } });
    for (const m of [await client.messages.create(request), await client.messages.stream(request).finalMessage()]) {
      const value = JSON.parse(text(m));
      assert.deepEqual([typeof value.name, typeof value.big], ["string", "boolean"]);
    }
  },
  async count(route) {
    const request = { model: route.model, system: "Be short.", messages: [{ role: "user", content: question }] };
    if (route.name === "cloud") return refused(client.messages.countTokens(request));
    const { input_tokens } = await client.messages.countTokens(request);
    const { usage } = await client.messages.create({ ...request, max_tokens: 1 });
    assert.equal(input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
  },
  async models(route) {
    const models = [];
    for await (const m of client.models.list()) models.push(m);
    const one = models.find((m) => m.id === route.model);
    assert.deepEqual(one, await client.models.retrieve(route.model).then(({ _request_id, ...m }) => m));
    assert.ok(one.type === "model" && one.display_name && Date.parse(one.created_at));
  },
  async errors(route) {
    const image = { type: "image", source: { type: "base64", media_type: "image/png", data: "aaaa" } };
    await assert.rejects(create({ model: "nope" }, {}), status(404, "not_found_error"));
    await assert.rejects(create(route, { messages: [] }), status(400, "invalid_request_error"));
    await assert.rejects(create(route, { temperature: 9 }), status(400, "invalid_request_error"));
    await assert.rejects(create(route, { max_tokens: null }), status(400, "invalid_request_error"));
    await assert.rejects(create(route, { messages: [{ role: "user", content: [image] }] }), (e) => {
      assert.match(e.message, /image/);
      return status(400, "invalid_request_error")(e);
    });
    await assert.rejects(create(route, { stream: true, thinking: { type: "enabled", budget_tokens: 2000 } }),
      status(400, "invalid_request_error"));
  },
  async abort(route) {
    const stream = await create(route, { stream: true });
    for await (const event of stream) { stream.controller.abort(); break; }
    assert.equal((await client.messages.create(ask(route))).stop_reason, "end_turn");
  },
});
