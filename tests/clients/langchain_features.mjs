// What LangChain does with either of OpenAI's APIs; the tools' round trip is langchain's agent. Not a client by itself.
import assert from "node:assert/strict";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { createAgent, tool as lcTool } from "langchain";
import { z } from "zod";
import { base, cities, isCity, isReport, question, refused, result, tool } from "./suite.mjs";

const configuration = { baseURL: base + "/v1" };
const shape = z.object({ city: z.enum(cities) });
const model = (route, more = {}) =>
  new ChatOpenAI({ model: route.model, apiKey: "any", configuration, maxRetries: 0, ...more });

export const features = (more) => ({
  async chat(route) {
    const r = await model(route, more).invoke(question);
    assert.ok(r.text.length > 0);
    const long = await model(route, more).invoke(
      [["system", "Answer in English."], ["human", "hello"], ["ai", "hello"], ["human", question]]);
    assert.ok(long.text.length > 0);
  },
  async stream(route) {
    let seen = "", n = 0;
    for await (const chunk of await model(route, more).stream(question)) { seen += chunk.text; n++; }
    assert.ok(n > 2);
    assert.equal(seen, (await model(route, more).invoke(question)).text);
  },
  async usage(route) {
    const { usage_metadata: u } = await model(route, more).invoke(question);
    assert.ok(u.input_tokens > 0 && u.output_tokens > 0);
    let last = null;
    for await (const chunk of await model(route, more).stream(question)) last = chunk.usage_metadata ?? last;
    assert.deepEqual([last.input_tokens, last.output_tokens], [u.input_tokens, u.output_tokens]);
  },
  async tools(route) {
    const weather = lcTool(async () => result, { name: tool.name, description: tool.description, schema: shape });
    // By name: the library drops "required" and "none" where it speaks Responses.
    const bound = model(route, more).bindTools([weather], { tool_choice: tool.name });
    const asked = await bound.invoke(question);
    assert.equal(asked.tool_calls.length, 1);
    assert.equal(asked.invalid_tool_calls.length, 0);
    isCity(asked.tool_calls[0].args);
    let whole = null;
    for await (const chunk of await bound.stream(question)) whole = whole ? whole.concat(chunk) : chunk;
    isCity(whole.tool_calls[0].args);
    if (route.name === "cloud") {
      const agent = createAgent({ model: model(route, more), tools: [weather] });
      const { messages } = await agent.invoke({ messages: [{ role: "user", content: question }] });
      assert.deepEqual(messages.map((m) => m.type), ["human", "ai", "tool", "ai"]);
      isReport(route, messages.at(-1).text);
    } else {
      const report = await model(route, more)
        .invoke([["human", question], asked, await weather.invoke(asked.tool_calls[0])]);
      isReport(route, report.text);
    }
  },
  async structured(route) {
    isCity(await model(route, more).withStructuredOutput(shape, { method: "jsonSchema" }).invoke(question));
    isCity(await model(route, more).withStructuredOutput(shape, { method: "functionCalling" }).invoke(question));
  },
  async embeddings(route) {
    const e = new OpenAIEmbeddings({ model: route.model, apiKey: "any", configuration, maxRetries: 0 });
    if (route.name === "cloud") return refused(e.embedDocuments(["hello", "hello"]));
    const [a, b] = await e.embedDocuments(["hello", "hello"]);
    assert.deepEqual(a, b);
    assert.deepEqual(await e.embedQuery("hello"), a);
  },
  async errors(route) {
    const status = (wanted) => (e) => (assert.equal(e.status, wanted, String(e)), true);
    await assert.rejects(model({ model: "nope" }, more).invoke(question), status(404));
    await assert.rejects(model(route, { ...more, temperature: 9 }).invoke(question), status(400));
    await assert.rejects(async () => {
      for await (const chunk of await model(route, { ...more, temperature: 9 }).stream(question));
    }, status(400));
    if (route.name === "cloud")
      await assert.rejects(async () => {
        for await (const chunk of await model({ model: "broken" }, more).stream(question));
      });
  },
  async abort(route) {
    const stop = new AbortController();
    await assert.rejects(async () => {
      for await (const chunk of await model(route, more).stream(question, { signal: stop.signal })) stop.abort();
    });
    assert.ok((await model(route, more).invoke(question)).text.length > 0);
  },
});
