"""How often strangers may knock: a bucket for each host and one for all, that fill again with time."""

from collections import OrderedDict
from dataclasses import dataclass, field

#: Hosts whose bucket is remembered; the one that knocked longest ago is forgotten first.
HOSTS_MAX = 256


@dataclass
class _Bucket:
    left: float
    at: float


@dataclass
class Pace:
    """Knocks a minute. Threat: an exchange costs 25 ms of computing, and a guess."""

    per_host: int = 12
    together: int = 60
    _all: _Bucket | None = None
    _hosts: "OrderedDict[str, _Bucket]" = field(default_factory=OrderedDict)

    def allows(self, host: str, now: float) -> bool:
        """Whether `host` may knock at `now` (seconds); counts the knock. One host's excess costs the others nothing."""
        bucket = self._hosts.pop(host, None) or _Bucket(float(self.per_host), now)
        self._hosts[host] = bucket
        if len(self._hosts) > HOSTS_MAX:
            self._hosts.popitem(last=False)
        if self._all is None:
            self._all = _Bucket(float(self.together), now)
        return _take(bucket, self.per_host, now) and _take(self._all, self.together, now)


def _take(bucket: _Bucket, per_minute: int, now: float) -> bool:
    bucket.left = min(float(per_minute), bucket.left + (now - bucket.at) * per_minute / 60.0)
    bucket.at = now
    if bucket.left < 1.0:
        return False
    bucket.left -= 1.0
    return True
