// OpenAI's Agents SDK, which speaks Responses.
import assert from "node:assert/strict";
import { Agent, OpenAIProvider, Runner, setTracingDisabled, tool as agentTool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { base, cities, isCity, isReport, question, result, run, tool } from "./suite.mjs";

setTracingDisabled(true);
const client = (more) => new OpenAI({ baseURL: base + "/v1", apiKey: "any", maxRetries: 0, ...more });
const runner = new Runner({ modelProvider: new OpenAIProvider({ openAIClient: client() }), tracingDisabled: true });
const agent = (route, more = {}) => new Agent({
  name: "assistant", instructions: "Answer in English.", model: route.model, ...more,
  modelSettings: { store: false, ...more.modelSettings },
});

await run("@openai/agents", {
  async chat(route) {
    const first = await runner.run(agent(route), question);
    assert.ok(first.finalOutput.length > 0);
    const second = await runner.run(agent(route), [...first.history, { role: "user", content: "hello" }]);
    assert.ok(second.finalOutput.length > 0);
  },
  async stream(route) {
    const r = await runner.run(agent(route), question, { stream: true });
    let seen = "";
    for await (const piece of r.toTextStream()) seen += piece;
    await r.completed;
    assert.equal(seen, r.finalOutput);
  },
  async usage(route) {
    const { usage } = (await runner.run(agent(route), question)).state;
    assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
    assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
  },
  async tools(route) {
    const args = [];
    const weather = agentTool({
      name: tool.name, description: tool.description, parameters: z.object({ city: z.enum(cities) }),
      execute: async (input) => (args.push(input), result),
    });
    // The choice is free again once the tool was used.
    const with_tool = agent(route, { tools: [weather], modelSettings: { toolChoice: "required" } });
    for (const stream of [false, true]) {
      const r = await runner.run(with_tool, question, { stream, maxTurns: 3 });
      if (stream) await r.completed;
      isCity(args.at(-1));
      isReport(route, r.finalOutput);
    }
    assert.equal(args.length, 2);
  },
  async structured(route) {
    const typed = agent(route, { outputType: z.object({ city: z.enum(cities) }) });
    isCity((await runner.run(typed, question)).finalOutput);
  },
  async errors(route) {
    const status = (wanted) => (e) => (assert.equal(e.status, wanted, String(e)), true);
    await assert.rejects(runner.run(agent({ model: "nope" }), question), status(404));
    await assert.rejects(runner.run(agent(route, { modelSettings: { temperature: 9 } }), question), status(400));
    if (route.name === "cloud")
      await assert.rejects(async () => {
        const r = await runner.run(agent({ model: "broken" }), question, { stream: true });
        for await (const event of r);
        await r.completed;
      });
  },
  async abort(route) {
    const stop = new AbortController();
    const r = await runner.run(agent(route), question, { stream: true, signal: stop.signal });
    for await (const event of r) { stop.abort(); break; }
    assert.ok((await runner.run(agent(route), question)).finalOutput.length > 0);
  },
});
