"""A torchrun script, as PyTorch's tutorial on fault tolerance has it: a snapshot that every restart loads."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.recovery.loop import STATE_FILE, State, arguments, train


def main() -> None:
    args = arguments("torchrun MNIST")
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(args.seed)
    state, snapshot = State(args.lr), args.scratch / STATE_FILE
    if snapshot.exists():
        state.load(snapshot)
    for _ in train(args, state, DistributedDataParallel(state.model), rank, ranks):
        if rank == 0:
            state.save(snapshot)


if __name__ == "__main__":
    main()
