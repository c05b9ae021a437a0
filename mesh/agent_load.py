"""What each agent of a node has to do, as its node tells it with its probes (node/agent_load.py).

Not guaranteed: that it is of now. It is a quarter of a second old when it is told, and goes with the next probe.
"""

from mesh.wire import membership_pb2


def load_of_agent(load: membership_pb2.NodeLoad, agent: str) -> membership_pb2.AgentLoad:
    """Of one agent. A node that names no agents is idle, or of a release that tells only its sums: these are charged to
    each."""
    if not load.agents:
        return membership_pb2.AgentLoad(
            agent=agent,
            requests=load.slots_busy,
            queued_prompt_tokens=load.queued_prompt_tokens,
            queued_output_tokens=load.queued_output_tokens,
        )
    return next((one for one in load.agents if one.agent == agent), membership_pb2.AgentLoad(agent=agent))
