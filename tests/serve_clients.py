"""Many clients of one server at once, in a process of their own: prints what each got, and the seconds."""

import asyncio
import json
import sys
import time
from typing import Any

import httpx2


async def ask(client: httpx2.AsyncClient, asked: dict[str, Any]) -> tuple[str, float]:
    """Return an answer, or what went wrong, and the seconds to its first words; ``leaves`` ends it early."""
    began_s = time.perf_counter()
    first_s = 0.0
    if not asked["body"].get("stream"):
        found = await client.post("/v1/chat/completions", json=asked["body"])
        first_s = time.perf_counter() - began_s
        if found.status_code != 200:
            return f"{found.status_code} {found.text}", first_s
        return str(found.json()["choices"][0]["message"]["content"]), first_s
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=asked["body"]) as found:
        if found.status_code != 200:
            return f"{found.status_code} {(await found.aread()).decode()}", 0.0
        async for line in found.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content") or ""
                first_s = first_s or (time.perf_counter() - began_s if text else 0.0)
            if asked.get("leaves") and text:
                break
    return text, first_s


async def main(url: str, num_clients: int, asks: list[dict[str, Any]]) -> None:
    """Send ``asks`` in their order, so many at once."""
    waiting, found = iter(enumerate(asks)), [("", 0.0)] * len(asks)
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one() -> None:
            for number, asked in waiting:
                found[number] = await ask(client, asked)

        began_s = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(num_clients)))
        took_s = time.perf_counter() - began_s
    json.dump(
        {"texts": [text for text, _ in found], "first_s": [s for _, s in found], "took_s": took_s}, sys.stdout
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.load(sys.stdin)))
