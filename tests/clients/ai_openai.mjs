// Vercel's AI SDK through @ai-sdk/openai, which speaks Responses unless told otherwise. Nothing is stored by ternd, so
// that the SDK must send what it has instead of referring to it: store false.
import { createOpenAI } from "@ai-sdk/openai";
import { base, run } from "./suite.mjs";
import { features } from "./ai_features.mjs";

const provider = createOpenAI({ baseURL: base + "/v1", apiKey: "any" });

await run("@ai-sdk/openai", features({
  model: (name) => provider(name),
  embedding: (name) => provider.embedding(name),
  options: { openai: { store: false } },
}));
