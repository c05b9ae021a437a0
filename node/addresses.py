"""HOST:PORT as people write it, read in one place."""


def split_address(text: str) -> tuple[str, int] | None:
    """HOST:PORT or [IPv6]:PORT; None where it is neither."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or any(c.isspace() or not c.isprintable() for c in host):
        return None
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        return None
    return host, int(port)


def target(host: str, port: int) -> str:
    """HOST:PORT, also as a gRPC target; IPv6 literals in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
