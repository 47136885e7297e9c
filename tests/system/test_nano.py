"""The shipped model's own evaluation (../shared/nano/evaluation.jsonl), item by item through the running daemon: the same
greedy answer on at least 99 % of the items, and the accuracy its recipe reports. ITEMS limits how many (default: all)."""
import collections, concurrent.futures, json, os, http.client
from harness import *


def test_evaluation_item_by_item():
    with open(shared("nano/evaluation.jsonl")) as f:
        items = [json.loads(line) for line in f]
    with open(shared("nano/evaluation.json")) as f:
        reported = json.load(f)
    limit = int(os.environ.get("ITEMS", "0"))
    if limit:
        items = items[:: max(1, len(items) // limit)]
    with running("engine.sessions=8") as (d, _):
        def part(mine):
            out = []
            c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=60 * PATIENCE)
            for item in mine:
                body = json.dumps({"messages": [{"role": "user", "content": item["prompt"]}], "temperature": 0, "max_tokens": 64})
                c.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                r = c.getresponse()
                answer = json.loads(r.read())
                assert r.status == 200, answer
                out.append((item, answer["choices"][0]["message"]["content"]))
            return out

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [a for got in pool.map(part, [items[i::8] for i in range(8)]) for a in got]
    same = sum(item["answer"].strip() == got.strip() for item, got in answers)
    print(f"      {same} of {len(answers)} answers identical to the recipe's ({100 * same / len(answers):.2f} %)")
    assert same >= 0.99 * len(answers)
    right = collections.defaultdict(list)
    for item, got in answers:
        if item["expected"] is not None:
            right[item["suite"]].append(item["expected"].strip() == got.strip())
    for suite, marks in sorted(right.items()):
        share = sum(marks) / len(marks)
        print(f"      {suite:12} {100 * share:6.2f} % of {len(marks)}; the recipe reports {100 * reported[suite]['correct']:.2f} %")
        if not limit:
            assert abs(share - reported[suite]["correct"]) <= 0.01, suite


run(globals())
