"""When an answer may be shown: once as many nodes hold its `completed` fact as should hold it now.

Why: what a client has seen must not vanish with one machine. A completion that only its author holds can be lost, and
another leader would then complete the job anew, perhaps with another answer.

Does not: hide an answer again. Members come later that do not hold it yet, and holders go.
"""

from dataclasses import dataclass, field

from mesh.facts import Place
from mesh.identity import NodeId
from mesh.ledger import COMPLETED, OPEN, Job
from mesh.surroundings import Surroundings, able_to_store, copies_wanted
from mesh.wire.local_pb2 import JobState

#: Jobs remembered as shown beyond those in the ledger, before they are looked through.
SHOWN_SLACK = 1_000


@dataclass
class Disclosure:
    """Invariant: a job that was shown as completed stays so."""

    around: Surroundings
    shown: set[bytes] = field(default_factory=set)

    def state_of(self, job: Job) -> "JobState.ValueType":
        """The job's state as clients see it: a completion that is not held widely enough yet is still open."""
        if job.state != COMPLETED or job.job_id in self.shown:
            return job.state
        if not self._held_widely(job):
            return OPEN
        if len(self.shown) > len(self.around.ledger.jobs) + SHOWN_SLACK:
            self.shown &= self.around.ledger.jobs.keys()
        self.shown.add(job.job_id)
        return COMPLETED

    def _held_widely(self, job: Job) -> bool:
        """Every end that this node knows of: the one that counts is then among those that are held."""
        others = able_to_store(self.around, self.around.membership.view()) - {self.around.me}
        wanted = copies_wanted(self.around)
        return all(1 + len(others & self._holders(end)) >= wanted for end in job.ends_at)

    def _holders(self, end: Place) -> set[NodeId]:
        holders = self.around.gossip.holders(end.stream_id, end.sequence)
        author = self.around.membership.members.get(end.stream_id.author)
        if author is not None and author.incarnation == end.stream_id.incarnation:
            holders.add(end.stream_id.author)  # it told nobody before its own sync
        return holders
