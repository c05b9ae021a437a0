"""The simulated routing is the same each time, takes no real time, and shows what a choice is worth."""

import asyncio

import pytest

from scripts.benches._serve_routing import CACHES, AtRandom, ByCosts, LeastLoaded, simulate
from scripts.benches._virtual_time import VirtualLoop


def test_time_passes_when_everybody_waits() -> None:
    async def wait() -> list[str]:
        order: list[str] = []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(after(3e6, "late"), after(1.0, "early"), after(0.0, "first"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1e6):
                await asyncio.Event().wait()
        return order

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(wait()) == ["first", "early", "late"]
        assert runner.get_loop().time() == pytest.approx(4e6)


def test_waiting_for_nothing_fails() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    loop = VirtualLoop()
    with pytest.raises(RuntimeError, match="nobody for a time"):
        loop.run_until_complete(wait())
    loop.set_exception_handler(lambda *_: None)  # of the task that still waits
    loop.close()


def test_the_products_choice_finds_more_cached_and_waits_less() -> None:
    first_s, cached = simulate(ByCosts, CACHES["overflow"], 1)
    assert simulate(ByCosts, CACHES["overflow"], 1) == (first_s, cached)
    for other in (LeastLoaded, AtRandom):
        other_first_s, other_cached = simulate(other, CACHES["overflow"], 1)
        assert first_s < other_first_s
        assert other_cached < cached
