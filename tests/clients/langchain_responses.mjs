// LangChain through @langchain/openai, told to speak Responses.
import { run } from "./suite.mjs";
import { features } from "./langchain_features.mjs";

const { embeddings, ...rest } = features({ useResponsesApi: true });

await run("@langchain/openai", rest, "@langchain/openai, responses");
