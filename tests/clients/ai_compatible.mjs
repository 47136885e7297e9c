// Vercel's AI SDK through @ai-sdk/openai-compatible, which speaks Chat Completions.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { base, run } from "./suite.mjs";
import { features } from "./ai_features.mjs";

const provider = createOpenAICompatible({
  name: "tern", baseURL: base + "/v1", apiKey: "any", includeUsage: true, supportsStructuredOutputs: true,
});

await run("@ai-sdk/openai-compatible", features({
  model: (name) => provider.chatModel(name),
  embedding: (name) => provider.textEmbeddingModel(name),
  async completion(name, prompt) {
    const { text } = await (await import("ai")).generateText({ model: provider.completionModel(name), prompt });
    assert.ok(text.length > 0);
  },
}));
