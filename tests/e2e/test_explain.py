"""`headgate explain` against a gateway that runs: its answer is what the gateway then does."""

import asyncio
import json
import os
import sys

import pytest

CHAT = "/v1/chat/completions"
LONG = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "word " * 3000}]}


async def explain(folder, admin, text, *arguments):
    """(exit code, standard output, standard error)"""
    prompt = folder / "prompt"
    prompt.write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "explain", "--config", str(folder / "headgate.yaml")),
        *("--admin", admin, "--prompt-file", str(prompt), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


async def answer(folder, admin, text, *arguments):
    code, out, err = await explain(folder, admin, text, *arguments, "--json")
    assert not err
    found = json.loads(out)
    assert code == (1 if "refused" in found else 0)
    return found


def words(response):
    head = response.headers["x-headgate-decision"].partition(";")[0]
    return dict(word.partition("=")[::2] for word in head.split())


def test_what_is_explained_is_what_happens(product, tmp_path):
    async def scene(house, engines):
        seen = sum(engine.state()["requests_seen"] for engine in engines)
        sent = await house.client.post(CHAT, json=LONG, headers={"x-session-id": "s"})
        home = words(sent)["endpoint"]
        text = json.dumps(LONG, indent=3)  # white space makes no other prompt
        found = await answer(tmp_path, house.admin, text, "-H", "X-Session-ID: s")
        assert (found["endpoint"], found["session"], found["policy"]) == (
            home,
            "home",
            "marginal-cost",
        )
        best, *others = found["candidates"]
        assert best["endpoint"] == home
        assert best["cached_tokens"] > 0.9 * found["prompt_tokens"]
        assert all(one["cached_tokens"] == 0 and one["home_s"] == 0.5 for one in others)
        assert all(one["cost"] > best["cost"] for one in others)
        free = await answer(tmp_path, house.admin, text)
        assert free["session"] is None
        again = await house.client.post(CHAT, json=LONG, headers={"x-session-id": "s"})
        assert words(again)["endpoint"] == home
        now = sum(engine.state()["requests_seen"] for engine in engines)
        assert now == seen + 2, "explaining asks no engine"
        code, out, _ = await explain(tmp_path, house.admin, text, "-H", "x-session-id: s")
        assert code == 0
        assert f"It goes to {home}." in out
        assert next(line for line in out.splitlines() if line.startswith("->")).split()[1] == home
        assert "stays where it was last" in out
        metrics = await house.metrics()
        assert metrics["headgate_requests_accepted_total"] == 2

    product(scene, 3, "decision_header: true\n", profile="demo", time_scale=0.02)


def test_plain_prompts_and_refusals(product, tmp_path):
    async def scene(house, _):
        found = await answer(tmp_path, house.admin, "Once upon a time\n", "--model", "sim")
        assert found["model"] == "sim"
        assert 4 <= found["prompt_tokens"] <= 6
        refused = await answer(tmp_path, house.admin, "Once", "--model", "none")
        assert refused["refused"]["reason"] == "unknown_model"
        assert refused["refused"]["status"] == 404
        code, out, _ = await explain(tmp_path, house.admin, "Once", "--model", "none")
        assert code == 1
        assert "refused: 404, unknown_model: The model 'none' does not exist here" in out
        nowhere = await answer(tmp_path, house.admin, "Once", "--path", "/v1/nothing")
        assert nowhere["refused"]["reason"] == "unknown_path"
        # What was configured for a key holds, without the key itself.
        mine = await answer(tmp_path, house.admin, "Once", "--key", "team")
        assert {one["why_not"] for one in mine["candidates"]} == {"lacks a label"}
        assert mine["labels"] == ["gpu=b200"]
        assert mine["refused"]["reason"] == "unmatched_labels"
        assert mine["refused"]["message"].endswith(
            "no engine for the model 'sim' has gpu=b200; there are role=decode, role=prefill."
        )
        stranger = await answer(tmp_path, house.admin, "Once", "--key", "nobody")
        assert stranger["refused"]["reason"] == "unauthorized"

    text = f"keys: [{{name: team, digest: {'ab' * 32}, labels: {{gpu: b200}}}}]\n"
    product(scene, 2, text)


def test_labels_of_engines_and_reload(product, tmp_path):
    async def scene(house, engines):
        config = tmp_path / "headgate.yaml"
        text = config.read_text()
        urls = [engine.url for engine in engines]

        async def reload(labels):
            entries = [
                {"url": url, "labels": given} for url, given in zip(urls, labels, strict=True)
            ]
            config.write_text(
                text.replace(json.dumps(urls), json.dumps(entries))
                + "models: {big: {alias_of: sim, labels: {gpu: h100}}}\n"
            )
            house.process.send_signal(1)  # SIGHUP
            while True:
                found = await answer(tmp_path, house.admin, "Once", "--model", "big")
                able = [one["may_take"] for one in found["candidates"]]
                if able.count(True) == 1 and "endpoint" in found:
                    return found["endpoint"]

        first = await reload([{"gpu": "h100"}, {"gpu": "l4"}])
        # The labels change places; connections and health stay.
        other = first
        config_now = [{"gpu": "l4"}, {"gpu": "h100"}]
        while other == first:
            other = await reload(config_now)
        both = {first, other}
        assert len(both) == 2
        answered = await house.client.post(CHAT, json={**LONG, "model": "big"})
        assert words(answered)["endpoint"] == other

    product(scene, 2, "decision_header: true\n", profile="instant")


def test_adapters_meet_where_theirs_is(product, tmp_path):
    adapters = tuple(f"lora-{n}" for n in range(6))

    async def scene(house, _):
        went = {name: set() for name in adapters}
        for turn in range(30):
            name = adapters[turn * 5 % 6]
            body = {**LONG, "model": name, "messages": [{"role": "user", "content": f"{turn}"}]}
            response = await house.client.post(CHAT, json=body)
            assert response.status_code == 200
            went[name].add(words(response)["endpoint"])
        assert all(len(used) == 1 for used in went.values())
        found = await answer(tmp_path, house.admin, "Once", "--model", "lora-0")
        assert found["is_adapter"]
        prices = {one["endpoint"]: one["adapter_s"] for one in found["candidates"]}
        (home,) = went["lora-0"]
        assert prices.pop(home) == 0
        assert all(price > 0 for price in prices.values())

    product(scene, 3, "decision_header: true\n", profile="instant", adapters=adapters)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--admin", "http://127.0.0.1:9"), "no gateway answers at http://127.0.0.1:9"),
        (("--admin", "gateway:9180"), "--admin: expected http://HOST:PORT"),
        (("--header", "x-session-id"), "expected 'NAME: VALUE'"),
        (("--config", "/nowhere.yaml"), "/nowhere.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_asked(tmp_path, arguments, said):
    (tmp_path / "headgate.yaml").write_text("admin: {port: 9, token: t}\n")

    async def main():
        code, out, err = await explain(tmp_path, "http://127.0.0.1:9", "Hi", *arguments)
        assert code != 0
        assert not out
        assert said in err

    asyncio.run(main())


def test_the_token_is_wanted(product, tmp_path):
    async def scene(house, _):
        config = tmp_path / "headgate.yaml"
        config.write_text(config.read_text().replace("token: t", "token: other"))
        code, _, err = await explain(tmp_path, house.admin, "Hi")
        assert code == 1
        assert "answers 401: Missing or wrong admin token" in err

    product(scene, 1)
