"""How gRPC is set up between nodes: what it refuses by itself, and how it notices that a peer is gone.

Idea: two lists of channel arguments, one for both ends and one for the port; sizes come from limits.py.

Not guaranteed: anything against strangers that open connections and never finish their TLS handshake but the time that
they get for it; gRPC counts connections nowhere.
"""

from node.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, STREAMS_PER_CONNECTION_MAX

GRPC_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    # Each dial is a connection of its own, not one more stream on a connection that may be stuck.
    ("grpc.use_local_subchannel_pool", 1),
    # A peer that lost power or its Wi-Fi answers nothing: its streams end after 15 s at the latest, and it is dialled
    # anew. (It is suspect after two probes already; this is about the stream.)
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
]
#: Of the mesh port. Calls go on a new connection, and so on a new handshake, after 20 minutes (10 % more or less); what
#: still runs on the old one has 10 more. Links are made anew before that. Threat: an end of a certificate, or a change
#: of the roots, that a connection which was open before never hears of.
PORT_OPTIONS: list[tuple[str, int]] = [
    *GRPC_OPTIONS,
    ("grpc.max_connection_age_ms", 1_200_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    # gRPC refuses the streams beyond it by itself (RST_STREAM, REFUSED_STREAM; its caller sees UNAVAILABLE), and those
    # that ended a moment ago still count. Only who keeps a connection full meets that; it is cheaper than our refusal.
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.http.overload_protection", 1),
    # Threat: a stranger that connects and says nothing. gRPC's own value is 120 s.
    ("grpc.server_handshake_timeout_ms", 10_000),
]
