"""The CA of every simulated mesh: whoever is asked to may sign with it, as an issuer may."""

from cryptography.hazmat.primitives.asymmetric import ec

from mesh.certificates import Authority, Roots

AUTHORITY = Authority.create(ec.derive_private_key(4711, ec.SECP256R1()), now_s=0.0, serial=1)
ROOTS = Roots([AUTHORITY.ca_der])
