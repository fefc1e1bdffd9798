"""Stages over blocks, compiled into Dask task graphs; knows nothing of what the rows mean."""

from stdist.graph.blocks import Blocks, part_bounds, tiles
from stdist.graph.compilation import resources_for
from stdist.graph.executors import Cluster, InProcess
from stdist.graph.plan import Plan, make_plan
from stdist.graph.preflight import added_keys, check_output, refuse_unfinished
from stdist.graph.progress import choose_progress
from stdist.graph.record import RunRecord, plain, run_folders, unfinished
from stdist.graph.reduce import add, add_by_group, by_name, concatenate, fold
from stdist.graph.run import discard, resume, run_in_memory, start
from stdist.graph.scope import scoped
from stdist.graph.stage import Each, Loop, Map, Program, Rearrange, Reduce
from stdist.graph.state import State
from stdist.graph.threads import one_thread

__all__ = [
    "Blocks",
    "Cluster",
    "Each",
    "InProcess",
    "Loop",
    "Map",
    "Plan",
    "Program",
    "Rearrange",
    "Reduce",
    "RunRecord",
    "State",
    "add",
    "add_by_group",
    "added_keys",
    "by_name",
    "check_output",
    "choose_progress",
    "concatenate",
    "discard",
    "fold",
    "make_plan",
    "one_thread",
    "part_bounds",
    "plain",
    "refuse_unfinished",
    "resources_for",
    "resume",
    "run_folders",
    "run_in_memory",
    "scoped",
    "start",
    "tiles",
    "unfinished",
]
