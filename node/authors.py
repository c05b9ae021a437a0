"""Whose facts count: the certificates of authors, which travel with their facts.

Idea: a fact proves its author by itself, and a certificate proves that the author belongs to the mesh, in a role. So a
node keeps one certificate of each author and role, passes it on before the author's facts, and drops the facts of
authors that it has none of; they come again. That a certificate has ended never matters here: it ends connections. A
role that was held once counts for good, or nodes that learnt of a change at different times would hold different facts.

Threat: a stranger's key signs as well as a member's. Without this, one peer could fill every disk of the mesh with
facts of authors that it invents.

Does not: check signatures of facts (shell.py), or know who was denied since when (mesh/denials.py).
"""

from collections.abc import Callable, Iterable, Sequence

from mesh.authorisation import may_author
from mesh.certificates import CertificateError, Identity, Role, Roots
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.wire import facts_pb2
from node.logs import log
from node.once import Once

#: Authors known; each was certified by an issuer, so this is against an issuer that runs wild.
AUTHORS_MAX = 10_000
#: Certificates read of one push, about 0.2 ms each; the facts of the others come again.
CERTIFICATES_MAX = 256
#: An author whose facts are dropped is logged again after this.
LOG_AGAIN_S = 3600.0

#: Where it is told that something was refused, and why.
Say = Callable[[str], None]


def warn(line: str) -> None:
    log("warning", line)


class Authors:
    """`take` on the event loop; everything else from any thread."""

    def __init__(self, roots: Roots | None, known: Iterable[bytes] = ()) -> None:
        """`roots`: None for a node in no mesh, which believes nobody; `known`: what the store holds."""
        self._roots = roots
        self._held: dict[NodeId, dict[Role, Identity]] = {}
        self._once = Once(LOG_AGAIN_S)
        self.take(self.read(known))

    def read(self, certificates: Iterable[bytes], say: Say = warn) -> list[Identity]:
        """Those of this mesh that are new here, or newer. About 0.2 ms each. `say`: why one is not taken."""
        found = []
        for certificate in certificates:
            try:
                identity = self._roots.read(certificate) if self._roots is not None else None
            except CertificateError as error:
                if self._once.due(str(error)):
                    say(f"an author's certificate was left out: {error}")
                continue
            if identity is not None and self._is_news(identity):
                found.append(identity)
        return found

    def take(self, identities: Iterable[Identity]) -> None:
        """Know these from now on. They are durable here, or come again."""
        for identity in identities:
            if identity.node_id in self._held or len(self._held) < AUTHORS_MAX:
                # A new dictionary in place of the old one, which another thread may be reading.
                self._held[identity.node_id] = {**self._held.get(identity.node_id, {}), identity.role: identity}

    def knows(self, author: NodeId, beside: Sequence[Identity] = ()) -> bool:
        return author in self._held or any(identity.node_id == author for identity in beside)

    def accepts(self, fact: Fact, beside: Sequence[Identity] = (), say: Say = warn) -> bool:
        """Whether the fact's author may say this. `beside`: certificates that came with it. `say`: of a refusal."""
        roles = set(self._held.get(fact.author, ()))
        roles.update(identity.role for identity in beside if identity.node_id == fact.author)
        if any(may_author(role, fact.kind) for role in roles):
            return True
        if self._once.due((fact.author, bool(roles))):
            why = f"a {', '.join(sorted(roles))} authors no {fact.kind}" if roles else "it has no certificate here"
            say(f"facts of {fact.author} are dropped: {why}")
        return False

    def verify_denial(self, deny: facts_pb2.Deny) -> bool:
        """Whether the mesh's CA signed it."""
        return self._roots is not None and self._roots.verify_denial(deny)

    def certificates_of(self, authors: Iterable[NodeId]) -> list[bytes]:
        """All roles of these authors; nothing of those that are not known."""
        return [one.certificate for author in authors for one in self._held.get(author, {}).values()]

    def in_role(self, role: Role) -> list[Identity]:
        """Who was ever certified in this role; whether that has ended is not looked at."""
        return [held[role] for held in self._held.values() if role in held]

    def _is_news(self, identity: Identity) -> bool:
        held = self._held.get(identity.node_id, {}).get(identity.role)
        return held is None or identity.not_before > held.not_before
