"""What is made once for several: shared while it is used, ended with the last, and made anew after that."""

import asyncio

import pytest

from node.shared import Shared


class Maker:
    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.may = asyncio.Event()

    async def __call__(self) -> object:
        self.begun += 1
        try:
            await self.may.wait()
            return object()
        finally:
            self.ended += 1


async def use(shared: Shared[str, object], make: Maker) -> object:
    async with shared.of("key", make) as value:
        return value


async def begun(make: Maker, count: int) -> None:
    async with asyncio.timeout(60):
        while make.begun < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


async def test_several_get_one_and_the_same_and_a_later_one_its_own() -> None:
    shared: Shared[str, object] = Shared()
    make = Maker()
    users = [asyncio.ensure_future(use(shared, make)) for _ in range(3)]
    await begun(make, 1)
    make.may.set()
    first, second, third = await asyncio.gather(*users)
    assert first is second is third
    assert "key" not in shared
    assert await use(shared, make) is not first
    assert make.begun == 2


async def test_it_is_there_as_long_as_one_uses_it() -> None:
    shared: Shared[str, object] = Shared()
    make = Maker()
    make.may.set()
    async with shared.of("key", make) as value:
        assert await use(shared, make) is value
        assert "key" in shared
    assert "key" not in shared
    assert make.begun == 1


async def test_one_that_goes_away_leaves_it_to_the_others_and_the_last_ends_it() -> None:
    shared: Shared[str, object] = Shared()
    make = Maker()
    users = [asyncio.ensure_future(use(shared, make)) for _ in range(2)]
    await begun(make, 1)
    users[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await users[0]
    assert make.ended == 0
    users[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await users[1]
    assert (make.ended, "key" in shared) == (1, False)
    make.may.set()
    assert await use(shared, make)


async def test_what_went_wrong_is_told_to_all() -> None:
    shared: Shared[str, object] = Shared()

    async def fail() -> object:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def one() -> None:
        async with shared.of("key", fail):
            raise AssertionError("it was not made")

    found = await asyncio.gather(one(), one(), return_exceptions=True)
    assert [type(error) for error in found] == [ValueError, ValueError]
    assert "key" not in shared


async def test_what_went_wrong_is_not_joined_by_who_comes_later() -> None:
    """Also while another who was told so has not left."""
    shared: Shared[str, object] = Shared()
    make = Maker()
    make.may.set()

    async def fail() -> object:
        raise ValueError("no")

    async def first_to_hear() -> object:
        try:
            async with shared.of("key", fail):
                raise AssertionError("it was not made")
        except ValueError:
            return await use(shared, make)

    one, other = await asyncio.gather(first_to_hear(), first_to_hear())
    assert one is other
    assert make.begun == 1
    assert "key" not in shared
