// LangChain through @langchain/openai, which speaks Chat Completions unless told otherwise.
import { run } from "./suite.mjs";
import { features } from "./langchain_features.mjs";

await run("@langchain/openai", features({}));
