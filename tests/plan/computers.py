"""Computers described by figures: what replays are tried on.

Contract: achieved, not printed, figures: GPU memory at 85 % of its printed bandwidth, links and RAM as copies and plain
reads get them. Slots are what is left of the card's memory; the planner knows better (`mixq.experts.memory_plan`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mixq.experts.cost import Hardware, ModelCost

GB = 1e9
TFLOPS = 1e12

RESERVED = 2.0 * GB
"""Of a card, beside the weights: driver and desktop, 8192 positions of KV cache in bfloat16, room to work in."""


@dataclass(frozen=True, slots=True)
class Computer:
    """A GPU with `vram` bytes of its own in a computer of some speed."""

    hardware: Hardware
    vram: float

    def slots(self, model: ModelCost) -> int:
        """Return how many experts fit beside all that every token needs."""
        trunk = model.layers * model.trunk_bytes + 3 * model.head_bytes  # with the embedding in bfloat16
        free = self.vram - RESERVED - trunk
        return min(max(int(free // model.expert_bytes), 0), model.layers * model.experts)


COMPUTERS: dict[str, Computer] = {
    "laptop-8gb": Computer(
        Hardware("8 GB laptop, PCIe x8, DDR5", 80 * GB, 0.8 * TFLOPS, 218 * GB, 25 * TFLOPS, 12 * GB), 8 * GB
    ),
    "laptop-8gb-ddr4": Computer(
        Hardware("8 GB laptop, PCIe x8, DDR4", 40 * GB, 0.4 * TFLOPS, 218 * GB, 25 * TFLOPS, 12 * GB), 8 * GB
    ),
    "desktop-12gb": Computer(
        Hardware("12 GB desktop", 60 * GB, 0.6 * TFLOPS, 306 * GB, 25 * TFLOPS, 20 * GB, ram_bandwidth=70 * GB), 12 * GB
    ),
    "desktop-16gb": Computer(
        Hardware("16 GB desktop", 70 * GB, 0.8 * TFLOPS, 610 * GB, 60 * TFLOPS, 25 * GB, ram_bandwidth=80 * GB), 16 * GB
    ),
    "desktop-24gb": Computer(Hardware("24 GB desktop", 80 * GB, 1.0 * TFLOPS, 850 * GB, 80 * TFLOPS, 25 * GB), 24 * GB),
    "four-old-cores": Computer(
        Hardware("24 GB, four old cores", 22 * GB, 0.2 * TFLOPS, 800 * GB, 70 * TFLOPS, 25 * GB, ram_bandwidth=40 * GB),
        24 * GB,
    ),
    "fast-link": Computer(
        Hardware(
            "16 GB, 60 GB/s link, slow CPU",
            20 * GB,
            0.2 * TFLOPS,
            800 * GB,
            90 * TFLOPS,
            60 * GB,
            ram_bandwidth=90 * GB,
        ),
        16 * GB,
    ),
    "fast-link-slow-ram": Computer(
        Hardware("16 GB, 60 GB/s link, slow RAM", 20 * GB, 0.2 * TFLOPS, 800 * GB, 90 * TFLOPS, 60 * GB), 16 * GB
    ),
}
