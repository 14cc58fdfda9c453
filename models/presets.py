"""The shapes of Mixtral and its relatives: the published config.json files, in the folder configs.

Contract: `PRESETS[name]` is the content of a config.json without weights: for plans, size tables and synthetic benches.
Mistral 7B is version 0.3; 0.1 had a vocabulary of 32,000, a window of 4096 and a rope_theta of 1e4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = ("mixtral-8x7b", "mixtral-8x22b", "mistral-7b", "llama-2-70b")
PRESETS: dict[str, dict[str, Any]] = {
    name: json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text("utf-8")) for name in NAMES
}
