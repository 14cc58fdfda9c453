"""Preset computers, for plans for another computer: the hardware files in the folder computers.

Contract: achieved speeds, not those of data sheets. GPU memory at 85 % of its nominal bandwidth (256 GB/s of an RTX
4060 laptop GPU, 360 of an RTX 3060 12 GB, 1008 of an RTX 4090); prompts at about a third of the nominal bfloat16 rate;
links as in long copies (PCIe 4.0 x8 12 of 16 GB/s, x16 25 of 32 GB/s); RAM at 85 % of two channels' nominal bandwidth
(DDR4-3200 51, DDR5-5600 90 GB/s), of which decode kernels get 90 %. A desktop uses 0.8 GB of the GPU's memory and 4 GB
of RAM. Launch, handover and Python overhead are those of a current CPU core.
"""

from __future__ import annotations

import os
from pathlib import Path

from mixq.errors import UsageError, did_you_mean, printable
from mixq.plan.computer import Computer
from mixq.system import paths

NAMES = ("laptop-8gb", "rtx-3060-12gb", "rtx-4090", "cpu-laptop")
COMPUTERS = {name: Computer.read(Path(__file__).parent / "computers" / f"{name}.json") for name in NAMES}


def find_computer(name: str) -> Computer:
    """Return a preset, or the computer of a hardware file.

    Raises:
        UsageError: neither a preset nor a file.
        ModelFileError: not a hardware file, or figures out of bounds.
    """
    if name in COMPUTERS:
        return COMPUTERS[name]
    path = paths.expand(name)
    if os.path.isfile(path):  # unlike Path.is_file, it takes a name of any length
        return Computer.read(path)
    raise UsageError(
        f"{printable(repr(name))} is neither a hardware file nor a preset. The presets are {', '.join(COMPUTERS)}."
        + did_you_mean(name.lower(), COMPUTERS),
        hint="Write a hardware file on the other computer: mixq doctor --save FILE",
    )
