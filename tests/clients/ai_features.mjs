// What the AI SDK does with any provider. Not a client by itself.
import assert from "node:assert/strict";
import {
  APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool as aiTool,
} from "ai";
import { z } from "zod";
import { cities, isCity, isReport, question, refused, result, tool } from "./suite.mjs";

const schema = z.object({ city: z.enum(cities) });

export const features = ({ model, embedding, options, completion }) => {
  const ask = (route, more = {}) => ({
    model: model(route.model), prompt: question, maxRetries: 0, providerOptions: options, ...more,
  });
  const weather = aiTool({ description: tool.description, inputSchema: schema, execute: async () => result });

  return {
    async chat(route) {
      const r = await generateText(ask(route));
      route.check(new Headers(r.response.headers));
      assert.equal(r.finishReason, "stop");
      assert.ok(r.text.length > 0);
      const more = await generateText(ask(route, { prompt: undefined, system: "Answer in English.", messages: [
        { role: "user", content: "hello" }, { role: "assistant", content: "hello" }, { role: "user", content: question },
      ] }));
      assert.ok(more.text.length > 0);
      await completion?.(route.model, question);
    },
    async stream(route) {
      const r = streamText(ask(route));
      let seen = "";
      for await (const piece of r.textStream) seen += piece;
      assert.equal(seen, await r.text);
      assert.equal(await r.finishReason, "stop");
      assert.equal(seen, (await generateText(ask(route))).text);
    },
    async usage(route) {
      const { usage } = await generateText(ask(route));
      assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
      const streamed = streamText(ask(route));
      await streamed.consumeStream();
      const u = await streamed.usage;
      assert.deepEqual([u.inputTokens, u.outputTokens], [usage.inputTokens, usage.outputTokens]);
    },
    async tools(route) {
        // Whole: the SDK runs the tool and asks again. The first step has to call it, the second may not.
      const steps = { tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(2),
                      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }) };
      const whole = await generateText(ask(route, steps));
      assert.equal(whole.steps.length, 2);
      assert.equal(whole.steps[0].finishReason, "tool-calls");
      isCity(whole.steps[0].toolCalls[0].input);
      assert.equal(whole.steps[0].toolResults[0].output, result);
      isReport(route, whole.text);
      const streamed = streamText(ask(route, steps));
      const parts = [];
      for await (const part of streamed.fullStream) parts.push(part.type);
      assert.ok(parts.includes("tool-input-delta") && parts.includes("tool-call") && parts.includes("tool-result"));
      isReport(route, await streamed.text);
    },
    async structured(route) {
        isCity((await generateObject(ask(route, { schema }))).object);
      const streamed = streamObject(ask(route, { schema }));
      for await (const partial of streamed.partialObjectStream) assert.equal(typeof partial, "object");
      isCity(await streamed.object);
    },
    async embeddings(route) {
      const asked = embedMany({ model: embedding(route.model), values: ["hello", "hello"], maxRetries: 0 });
      if (route.name === "cloud") return refused(asked, (e) => e.statusCode);
      const { embeddings } = await asked;
      assert.deepEqual(embeddings[0], embeddings[1]);
      assert.ok(embeddings[0].length > 0);
    },
    async errors(route) {
      const status = (wanted) => (e) => {
        assert.ok(APICallError.isInstance(e), String(e));
        assert.equal(e.statusCode, wanted);
        return true;
      };
      await assert.rejects(generateText(ask(route, { model: model("nope") })), status(404));
      await assert.rejects(generateText(ask(route, { temperature: 9 })), status(400));
      let seen = null;
      await streamText(ask(route, { temperature: 9, onError: ({ error }) => (seen = error) })).consumeStream();
      assert.ok(status(400)(seen));
      if (route.name === "cloud") {
        seen = null;
        await streamText(ask(route, { model: model("broken"), onError: ({ error }) => (seen = error) })).consumeStream();
        assert.match(JSON.stringify(seen?.message ?? seen), /cloud/);
      }
    },
    async abort(route) {
      const stop = new AbortController();
      const r = streamText(ask(route, { abortSignal: stop.signal }));
      for await (const piece of r.textStream) { stop.abort(); break; }
      assert.equal((await generateText(ask(route))).finishReason, "stop");
    },
  };
};
