"""mixq's side with a model folder, which says how the weights are in memory. Run as a worker (see `worker`)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mixq
from mixq.engine import loading
from mixq.plan.sizes import ModelSizes
from tests.bench.mixq_side import CONTEXT, Mixq
from tests.bench.worker import Description, answers_on_stdout, serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mapped", action="store_true", help="leave the files mapped as the page cache has them")
    arguments = parser.parse_args()
    with answers_on_stdout():
        if arguments.mapped:
            loading.SMALL = 1 << 60  # smaller models stay mapped
        begun = time.perf_counter()
        model = mixq.load(arguments.folder, device="cpu", context=CONTEXT, threads=arguments.threads)
        side = Mixq(model)
        side.decode(1)
        first_token = time.perf_counter() - begun
        size = ModelSizes.of_weights(model.folder).token
        description = Description(model.placement.weights_are, size, first_token=first_token)
        serve(description, side.decode, side.prefill)


if __name__ == "__main__":
    main()
