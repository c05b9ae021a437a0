"""How often strangers may knock: a bucket for each host and one for all, that fill again with time."""

from mesh.rate import Rate

#: Hosts whose bucket is remembered; the one that knocked longest ago is forgotten first.
HOSTS_MAX = 256


class Pace:
    """Knocks a minute. Threat: an exchange costs 25 ms of computing, and a guess."""

    def __init__(self, per_host: int = 12, together: int = 60) -> None:
        self._hosts = Rate(per_host / 60, per_host, remembered=HOSTS_MAX)
        self._all = Rate(together / 60, together)

    def allows(self, host: str, now: float) -> bool:
        """Whether `host` may knock at `now` (seconds); counts the knock. One host's excess costs the others nothing."""
        return not self._hosts.wait_s(host, now) and not self._all.wait_s("", now)
