"""Which invites live, what each is still good for, and what a wrong guess costs: a book-keeper without a clock.

Idea: a guess is spent when the proof is sent, since from then on the other side can test one word pair against it. So
`begin` hands out at most one exchange with a code at a time, `proven` marks the guess as spent, and an exchange that
was proven and did not end in a good request voids the whole invite: whoever hangs up has guessed wrong. A token can
not be guessed; its wrong exchanges are counted all the same, and the invite ends at WRONG_TOKENS_MAX.

Because anybody who reaches the door can void a code by guessing, an invite for scripts can be made without one.

Does not: do cryptography, or know when connections end.
"""

from collections import deque
from dataclasses import dataclass

from mesh.certificates import Role
from node.errors import ExitCode, KithError
from node.joining.codes import ID_CHARS, NAMEPLATE_MAX, SECRET_BYTES, Code, Token, code_of, invite_id_of

#: Living at once. Nameplates are short, and nobody reads more codes aloud.
INVITES_MAX = 16
WRONG_TOKENS_MAX = 20
TTL_S_MAX = 7 * 86_400.0
USES_MAX = 100
#: Nameplates not given again at once: who types an old code must not void a new invite.
RESTING = 32
#: Random bytes that `open` takes: nameplate, two words, id, secret.
ENTROPY_BYTES = 4 + 2 + ID_CHARS + SECRET_BYTES


@dataclass(eq=False)
class Invite:
    """`ended`: "" while it lives; "used", "void" (a wrong guess), "expired" or "withdrawn"."""

    code: Code | None
    token: Token
    role: Role
    expires: float  # seconds on the caller's clock
    uses_left: int
    wrong_tokens: int = 0
    code_in_use: bool = False
    ended: str = ""


class Refused(Exception):
    """Not now or not at all. `reason` is one of proto/join.proto's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False)
class Guess:
    """One exchange for one invite."""

    invite: Invite
    secret: Code | Token
    proven: bool = False
    over: bool = False


class Invites:
    def __init__(self) -> None:
        self._live: list[Invite] = []
        self._resting: deque[int] = deque(maxlen=RESTING)

    @property
    def live(self) -> list[Invite]:
        return list(self._live)

    def open(
        self, now: float, ttl_s: float, uses: int, role: Role, ca_hash: bytes, entropy: bytes, *, with_code: bool = True
    ) -> Invite:
        """A new invite. `entropy`: ENTROPY_BYTES, secret. Raises `KithError` (`bad-request`, `too-many-invites`)."""
        assert len(entropy) == ENTROPY_BYTES
        if not 0 < ttl_s <= TTL_S_MAX or not 1 <= uses <= USES_MAX:
            raise KithError(
                "bad-request",
                "an invite lives for 1 s to 7 days and is good for 1 to 100 nodes",
                "Try `kith invite --ttl 15m --uses 1`.",
                ExitCode.USAGE,
            )
        self.expire(now)
        if len(self._live) >= INVITES_MAX:
            raise KithError(
                "too-many-invites",
                f"{INVITES_MAX} invites live already",
                "Wait until some end, or let one be used several times: `kith invite --uses 5`.",
                ExitCode.UNAVAILABLE,
            )
        words, rest = entropy[4:6], entropy[6:]
        token = Token(ca_hash, invite_id_of(rest), rest[ID_CHARS:])
        code = code_of(self._nameplate(int.from_bytes(entropy[:4], "big")), words) if with_code else None
        invite = Invite(code, token, role, now + ttl_s, uses)
        self._live.append(invite)
        return invite

    def _nameplate(self, drawn: int) -> int:
        taken = {invite.code.nameplate for invite in self._live if invite.code} | set(self._resting)
        free = [number for number in range(1, NAMEPLATE_MAX + 1) if number not in taken]
        return free[drawn % len(free)]

    def begin(self, now: float, said: str) -> Guess:
        """Somebody names an invite. Every guess ends with `spend` or `give_up`. Raises `Refused`."""
        self.expire(now)
        for invite in self._live:
            if said == invite.token.invite:
                return Guess(invite, invite.token)
            if invite.code is not None and said == invite.code.invite:
                if invite.code_in_use:
                    raise Refused("busy")
                invite.code_in_use = True
                return Guess(invite, invite.code)
        raise Refused("invite-unknown")

    def spend(self, now: float, guess: Guess) -> None:
        """The other side has proven that it knows the secret: one use less. Raises `Refused` where none is left."""
        assert guess.proven
        assert not guess.over
        self._settle(guess)
        self.expire(now)
        invite = guess.invite
        if invite.ended:
            raise Refused("invite-unknown")
        invite.uses_left -= 1
        if not invite.uses_left:
            self._end(invite, "used")

    def excuse(self, guess: Guess) -> None:
        """The other side knows the secret and is not admitted for another reason: nothing is used or counted."""
        self._settle(guess)

    def give_up(self, guess: Guess) -> bool:
        """The exchange ended in any other way; nothing after `spend` and `excuse`. Returns whether it was a guess."""
        if guess.over:
            return False
        self._settle(guess)
        invite = guess.invite
        if not guess.proven or invite.ended:
            return False
        if isinstance(guess.secret, Token):
            invite.wrong_tokens += 1
        if isinstance(guess.secret, Code) or invite.wrong_tokens >= WRONG_TOKENS_MAX:
            self._end(invite, "void")
        return True

    def withdraw(self, invite: Invite) -> None:
        if not invite.ended:
            self._end(invite, "withdrawn")

    def expire(self, now: float) -> None:
        for invite in self.live:
            if now >= invite.expires:
                self._end(invite, "expired")

    def _settle(self, guess: Guess) -> None:
        guess.over = True
        if isinstance(guess.secret, Code):
            guess.invite.code_in_use = False

    def _end(self, invite: Invite, how: str) -> None:
        invite.ended = how
        self._live.remove(invite)
        if invite.code is not None:
            self._resting.append(invite.code.nameplate)
