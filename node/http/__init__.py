"""The HTTP door: any OpenAI client talks to the whole mesh.

door.py         opens it: address, TLS, routes          guard.py, tls.py   who gets in
fields.py       reads JSON bodies, field by field       naming.py          model names → agents
messages.py, sampling.py, formats.py, tools.py          OpenAI's fields → the engine's request
answering.py    runs requests, merged, with ticks       tool_reading.py    finds calls in what a model wrote
event_stream.py server-sent events and gone clients     panel.py           several agents, one answer
chat.py, completions.py, embeddings.py, models.py       the endpoints
responses.py, response_items.py, response_events.py, response_store.py     /v1/responses
"""
