"""Jobs whose tasks now and then stand still, in some worlds: the engine moves, the task does not, and nothing says so.

A request to a hosted model that is never answered, a read that never ends. No watchdog sees it, and where its second
copy stands still as well, only the lease of both sets the task free.

Drawn from randomness of its own, so that the other worlds live as they would without it.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from mesh.dispatch import TaskKey

if TYPE_CHECKING:
    from tests.sim.clients import Clients

#: One world in so many has them.
WORLDS = 3
#: The word of such a task, and the share of its runs that stand still.
WORD, SHARE = "stuck", 0.5
SHAPES = ("2", "3", "1,1")
FIRST_NUMBER = 2_000
#: When trouble is nearly over: before, a change of leaders often frees such a task by chance.
FROM_S, UNTIL_S = 62.0, 76.0


class Stuck:
    def __init__(self, clients: Clients, seed: int) -> None:
        self.clients = clients
        self.rng = random.Random(f"stuck in {seed}")

    def start(self) -> None:
        if self.rng.randrange(WORLDS):
            return
        for number in range(self.rng.choice([1, 2, 3])):
            order = self.clients.draw(self.rng, FIRST_NUMBER + number, self.rng.choice(SHAPES), WORD, 1)
            self.clients.clock.after(
                self.rng.uniform(FROM_S, UNTIL_S),
                lambda order=order: self.clients.hand_in(order),  # type: ignore[misc]
            )


def stands_still(key: TaskKey, words: str, host: str, attempt: int) -> bool:
    """Whether this run of a task never moves."""
    if WORD not in words:
        return False
    name = f"{key.ref.index}.{key.ref.replica} {host} {attempt}".encode()
    return hashlib.sha256(key.job_id + name).digest()[0] < SHARE * 256
