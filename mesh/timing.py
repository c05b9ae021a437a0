"""How patient membership is, as named presets: a wired or wireless LAN, a WAN or VPN, one machine.

Source of the numbers: hashicorp/memberlist, config.go (DefaultLANConfig, DefaultWANConfig, DefaultLocalConfig), which
years of use have settled. What they call gossip-to-the-dead is not needed here: the dead are told when they speak.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """All `_s` fields are seconds.

    Worth knowing when choosing: a member that answers nobody is suspect after one to two probe intervals, dead after
    the least suspicion time more where enough others confirm it, after the longest where nobody does.
    """

    probe_interval_s: float
    #: Of the direct probe; then others are asked to try, until the end of the interval.
    probe_timeout_s: float
    indirect_probes: int
    suspicion_mult: int
    suspicion_max_mult: int
    retransmit_mult: int
    gossip_interval_s: float
    gossip_peers: int
    exchange_interval_s: float
    awareness_max: int = 8

    @property
    def pause_s(self) -> float:
        """A gap of this node's own ticks longer than this is a pause: a closed lid, a stopped process."""
        return 2.0 * self.probe_interval_s

    def suspicion_min_s(self, members: int) -> float:
        """suspicion_mult × max(1, log10(members)) × probe_interval: enough for a rumour to go round and be denied."""
        return self.suspicion_mult * max(1.0, math.log10(max(1, members))) * self.probe_interval_s

    def suspicion_max_s(self, members: int) -> float:
        """suspicion_max_mult × the least: while nobody else confirms it, it may be our own fault."""
        return self.suspicion_max_mult * self.suspicion_min_s(members)

    def confirmations(self, members: int) -> int:
        """Others whose word makes the suspicion as short as it gets: suspicion_mult - 2, or none in a small mesh.

        Our phase against theirs is unknown, so the nominal time is met two probes early; `members` less this node and
        the suspect are who could confirm.
        """
        wanted = self.suspicion_mult - 2
        return wanted if members - 2 >= wanted else 0

    def retransmits(self, members: int) -> int:
        """retransmit_mult × ceil(log10(members + 1)): how often each node passes one rumour on."""
        return self.retransmit_mult * math.ceil(math.log10(members + 1))

    def exchange_every_s(self, members: int) -> float:
        """exchange_interval up to 32 members; from there × (ceil(log2(members / 32)) + 1), as it costs O(members)."""
        if members <= 32:
            return self.exchange_interval_s
        return self.exchange_interval_s * (math.ceil(math.log2(members / 32)) + 1)


LAN = Timing(
    probe_interval_s=1.0,
    probe_timeout_s=0.5,
    indirect_probes=3,
    suspicion_mult=4,
    suspicion_max_mult=6,
    retransmit_mult=4,
    gossip_interval_s=0.2,
    gossip_peers=3,
    exchange_interval_s=30.0,
)
WAN = Timing(
    probe_interval_s=5.0,
    probe_timeout_s=3.0,
    indirect_probes=3,
    suspicion_mult=6,
    suspicion_max_mult=6,
    retransmit_mult=4,
    gossip_interval_s=0.5,
    gossip_peers=4,
    exchange_interval_s=60.0,
)
LOCAL = Timing(
    probe_interval_s=1.0,
    probe_timeout_s=0.2,
    indirect_probes=1,
    suspicion_mult=3,
    suspicion_max_mult=6,
    retransmit_mult=2,
    gossip_interval_s=0.1,
    gossip_peers=3,
    exchange_interval_s=15.0,
)
PRESETS = {"lan": LAN, "wan": WAN, "local": LOCAL}
