"""What an invite is good for."""

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.certificates import Role
from node.errors import KithError
from node.joining.codes import NAMEPLATE_MAX, Code
from node.joining.invites import (
    ENTROPY_BYTES,
    INVITES_MAX,
    WRONG_TOKENS_MAX,
    Guess,
    Invite,
    Invites,
    Refused,
)

CA_HASH = bytes(32)


def entropy(seed: int) -> bytes:
    return hashlib.shake_256(b"%d" % seed).digest(ENTROPY_BYTES)


def opened(invites: Invites, *, now: float = 0.0, ttl_s: float = 60.0, uses: int = 1, seed: int = 1) -> Invite:
    return invites.open(now, ttl_s, uses, Role.NODE, CA_HASH, entropy(seed))


def code_of(invite: Invite) -> str:
    assert invite.code is not None
    return invite.code.invite


def guessed(invites: Invites, said: str, now: float = 0.0) -> Guess:
    guess = invites.begin(now, said)
    guess.proven = True
    return guess


def test_a_code_is_good_once() -> None:
    invites = Invites()
    invite = opened(invites)
    invites.spend(0.0, guessed(invites, code_of(invite)))
    assert invite.ended == "used"
    assert not invites.live
    for said in (code_of(invite), invite.token.invite):
        with pytest.raises(Refused, match="invite-unknown"):
            invites.begin(0.0, said)


def test_a_wrong_code_voids_the_invite_and_its_token() -> None:
    invites = Invites()
    invite = opened(invites, uses=5)
    invites.give_up(guessed(invites, code_of(invite)))
    assert invite.ended == "void"
    for said in (code_of(invite), invite.token.invite):
        with pytest.raises(Refused):
            invites.begin(0.0, said)


def test_who_leaves_before_the_proof_has_guessed_nothing() -> None:
    invites = Invites()
    invite = opened(invites)
    invites.give_up(invites.begin(0.0, code_of(invite)))
    assert not invite.ended
    invites.spend(0.0, guessed(invites, code_of(invite)))


def test_two_can_not_guess_at_the_same_time() -> None:
    invites = Invites()
    invite = opened(invites)
    first = invites.begin(0.0, code_of(invite))
    with pytest.raises(Refused, match="busy"):
        invites.begin(0.0, code_of(invite))
    first.proven = True
    invites.spend(0.0, first)


def test_a_token_bears_some_wrong_exchanges_and_not_many() -> None:
    invites = Invites()
    invite = opened(invites, uses=3)
    for _ in range(WRONG_TOKENS_MAX - 1):
        invites.give_up(guessed(invites, invite.token.invite))
    invites.spend(0.0, guessed(invites, invite.token.invite))
    assert invites.live == [invite]
    invites.give_up(guessed(invites, invite.token.invite))
    assert invite.ended == "void"


def test_uses_are_counted_when_many_come_at_once() -> None:
    invites = Invites()
    invite = opened(invites, uses=2)
    guesses = [guessed(invites, invite.token.invite) for _ in range(4)]
    for guess in guesses[:2]:
        invites.spend(0.0, guess)
    for guess in guesses[2:]:
        with pytest.raises(Refused):
            invites.spend(0.0, guess)
    assert invite.ended == "used"


def test_an_invite_ends_with_its_time_even_within_an_exchange() -> None:
    invites = Invites()
    invite = opened(invites, ttl_s=60.0)
    guess = guessed(invites, code_of(invite), now=59.9)
    with pytest.raises(Refused):
        invites.spend(60.0, guess)
    assert invite.ended == "expired"


def test_a_withdrawn_invite_is_gone() -> None:
    invites = Invites()
    invite = opened(invites)
    guess = guessed(invites, code_of(invite))
    invites.withdraw(invite)
    invites.withdraw(invite)
    with pytest.raises(Refused):
        invites.spend(0.0, guess)
    assert invite.ended == "withdrawn"


def test_an_invite_can_do_without_a_code() -> None:
    invites = Invites()
    invite = invites.open(0.0, 60.0, 1, Role.WORKER, CA_HASH, entropy(1), with_code=False)
    assert invite.code is None
    invites.spend(0.0, guessed(invites, invite.token.invite))


@pytest.mark.parametrize(("ttl_s", "uses"), [(0.0, 1), (-1.0, 1), (8 * 86400.0, 1), (60.0, 0), (60.0, 101)])
def test_what_makes_no_sense_is_refused(ttl_s: float, uses: int) -> None:
    with pytest.raises(KithError, match="an invite lives"):
        opened(Invites(), ttl_s=ttl_s, uses=uses)


def test_there_is_a_limit_and_nameplates_differ() -> None:
    invites = Invites()
    plates = [code_of(opened(invites, seed=seed)) for seed in range(INVITES_MAX)]
    assert len(set(plates)) == INVITES_MAX
    with pytest.raises(KithError, match="live already"):
        opened(invites, seed=99)
    opened(invites, now=60.0, seed=99)


def test_a_nameplate_rests_before_it_is_given_again() -> None:
    invites = Invites()
    before: list[str] = []
    for seed in range(3 * NAMEPLATE_MAX):
        invite = opened(invites, seed=seed)
        assert code_of(invite) not in before[-20:]
        before.append(code_of(invite))
        invites.withdraw(invite)


class Any(RuleBasedStateMachine):
    """Guesses, right and wrong, in any order: never more than was given."""

    def __init__(self) -> None:
        super().__init__()
        self.invites = Invites()
        self.now = 0.0
        self.all: list[tuple[Invite, int]] = []
        self.open_guesses: list[Guess] = []
        self.admitted: dict[Invite, int] = {}
        self.wrong_codes: set[Invite] = set()

    @rule(uses=st.integers(1, 3), seed=st.integers(0, 10**6))
    def open(self, uses: int, seed: int) -> None:
        if len(self.invites.live) < INVITES_MAX:
            self.all.append((opened(self.invites, now=self.now, uses=uses, seed=seed), uses))

    @rule(pick=st.integers(0, 100), by_code=st.booleans(), prove=st.booleans())
    def begin(self, pick: int, by_code: bool, prove: bool) -> None:
        if not self.all:
            return
        invite, _ = self.all[pick % len(self.all)]
        try:
            guess = self.invites.begin(self.now, code_of(invite) if by_code else invite.token.invite)
        except Refused:
            return
        guess.proven = prove
        self.open_guesses.append(guess)

    @rule(pick=st.integers(0, 100), right=st.booleans())
    def end(self, pick: int, right: bool) -> None:
        if not self.open_guesses:
            return
        guess = self.open_guesses.pop(pick % len(self.open_guesses))
        if not (right and guess.proven):
            if guess.proven and isinstance(guess.secret, Code):
                self.wrong_codes.add(guess.invite)
            self.invites.give_up(guess)
            return
        try:
            self.invites.spend(self.now, guess)
        except Refused:
            return
        assert guess.invite not in self.wrong_codes
        self.admitted[guess.invite] = self.admitted.get(guess.invite, 0) + 1

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def never_more_than_was_given(self) -> None:
        for invite, uses in self.all:
            assert self.admitted.get(invite, 0) + invite.uses_left == uses
            assert (invite.ended == "") == (invite in self.invites.live)
            by_code = [g for g in self.open_guesses if g.invite is invite and isinstance(g.secret, Code)]
            assert len(by_code) <= 1


TestAny = Any.TestCase
TestAny.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
