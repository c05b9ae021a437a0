"""The shell: the only place with asyncio, gRPC, mDNS, SQLite, llama.cpp, HTTP, the clock and randomness."""

__version__ = "0.5.0"
