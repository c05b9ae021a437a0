"""What each agent of a node has to do, as the node tells it; mesh/agent_load.py reads it.

Why: a node may serve several models, each with an engine and a queue of its own. Whoever charges one with what another
has to do asks a distant node although an idle engine is near.

Idea: a request counts from the moment when it reaches its agent, also while it waits for a turn at the door (turns.py)
or for its model to be loaded: whoever asks next waits behind it. While a model of the node is loaded, an agent whose
own is not in memory waits for that too. Agents without anything to do are not named.
"""

from mesh.intake import Intake
from mesh.wire import membership_pb2
from node.engine_door import EngineDoor
from node.engines import FIRST, Engines


def told(engines: Engines, door: EngineDoor, intake: Intake) -> list[membership_pb2.AgentLoad]:
    """Of this node, for its peers."""
    found = []
    for agent in (FIRST, *engines.further):
        figures = engines.of(agent).figures
        names = (agent, *_also(agent))
        tasks = sum(one.uses_engine and one.assign.agent.agent in names for one in intake.running.values())
        holding, waiting = door.turns_of(agent)
        requests = max(tasks + holding, figures.slots_busy + figures.queue_length) + waiting
        load_wait_s = engines.load_wait_s(agent)
        if requests or load_wait_s:
            prompt, output = intake.load(names)
            found.append(
                membership_pb2.AgentLoad(
                    agent=agent,
                    requests=requests,
                    queued_prompt_tokens=prompt,
                    queued_output_tokens=output,
                    load_wait_seconds=load_wait_s,
                )
            )
    return found


def _also(agent: str) -> tuple[str, ...]:
    """Other names of it in assignments: the first agent may be meant without a name."""
    return ("",) if agent == FIRST else ()
