// What the clients' files share. A file describes one client as features, each a function that is given a route, throws
// when something is not as it should be, and may return what the table is to say instead of "yes"; run() calls them for
// both routes and prints a JSON line each:
//     {"client":"ollama","version":"0.6.4","route":"local","feature":"chat","ok":true,"ms":12}
// tests/system/test_clients.py collects the lines of all files and table.py, which has the list of features, makes
// docs/compatibility.md of them. A feature that a file does not have is not in that client's API.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

// Of the package as it is installed.
export const version = (name) =>
  JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;

// Where ternd listens, without a path.
export const base = process.argv[2];

// One route: the name of the model that goes there and nowhere else, and a check on an answer's headers.
const route = (name, model) => ({
  name,
  model,
  check: (headers) => assert.equal(headers.get("x-tern-route"), name),
});
export const routes = [route("local", "tern-nano"), route("cloud", "main")];

// What is asked everywhere: a question that the shipped model knows, a tool and its result, a value with a shape (a
// choice keeps what the shipped model makes up short). On the cloud route two tools are called when the question says
// "each", and an answer repeats the results.
export const question = "what is the capital of france";
export const cities = ["Paris", "Rome"];
export const city = {
  type: "object", properties: { city: { type: "string", enum: cities } }, required: ["city"],
  additionalProperties: false,
};
export const tool = { name: "weather", description: "The weather in a city.", parameters: city };
export const result = "21 degrees";
export const isCity = (value) => {
  assert.deepEqual(Object.keys(value), ["city"]);
  assert.ok(cities.includes(value.city), value.city);
};
export const isReport = (route, text) => {
  assert.equal(typeof text, "string");
  if (route.name === "cloud") assert.match(text, /21 degrees/);
};

// For what only the local model does, or it cannot do: the answer is a clear 400, which `status` finds in the error.
export async function refused(promise, status = (e) => e.status) {
  await assert.rejects(promise, (e) => {
    assert.equal(status(e), 400, String(e));
    assert.match(String(e.message ?? e), /not supported|local model/);
    return true;
  });
  return "refused";
}

// label: what the table calls it, where one package has several APIs.
export async function run(client, features, label = client) {
  let failed = 0;
  for (const r of routes)
    for (const [feature, fn] of Object.entries(features)) {
      const began = performance.now();
      const line = { client: label, version: version(client), route: r.name, feature, ok: true };
      try {
        const said = await fn(r);
        if (said) line.said = said;
      } catch (e) {
        failed++;
        line.ok = false;
        line.why = String(e?.stack ?? e);
      }
      console.log(JSON.stringify({ ...line, ms: Math.round(performance.now() - began) }));
    }
  process.exit(failed ? 1 : 0);
}
