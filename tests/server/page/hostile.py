"""Forty texts that try to become more than text, and what a reply shows of each (None: the text itself).

Each sets `window.__pwned`, opens a dialog, loads something of another site or leaves the page, if it can.
"""

from __future__ import annotations

PWN = "window.__pwned=1"

HOSTILE: list[tuple[str, str | None]] = [
    (f"<script>{PWN}</script>", None),
    (f"<ScRiPt>{PWN}</sCrIpT>", None),
    (f"</script><script>{PWN}</script>", None),
    (f"<img src=x onerror='{PWN}'>", None),
    (f"<img src=https://evil.example/x.png onload={PWN}>", None),
    (f"<svg onload={PWN}>", None),
    (f"<svg><script>{PWN}</script></svg>", None),
    (f"<svg><animate onbegin={PWN} attributeName=x dur=1s>", None),
    (f"<body onload={PWN}>", None),
    (f"<iframe src='javascript:{PWN}'></iframe>", None),
    ("<iframe srcdoc='<script>parent.__pwned=1</script>'></iframe>", None),
    ("<meta http-equiv=refresh content='0;url=https://evil.example/'>", None),
    ("<base href=https://evil.example/>", None),
    ("<link rel=stylesheet href=https://evil.example/x.css>", None),
    ("<style>@import 'https://evil.example/x.css';</style>", None),
    ("<form action=https://evil.example/><input name=q autofocus onfocus=alert(1)></form>", None),
    (f"<details open ontoggle={PWN}>x</details>", None),
    (f"<video><source onerror={PWN}></video>", None),
    (f"<math><mi xlink:href='javascript:{PWN}'>x</mi></math>", None),
    (f"<a href='javascript:{PWN}'>click</a>", None),
    (f"[click](javascript:{PWN})", None),
    (f"[click](JaVaScRiPt:{PWN})", None),
    (f"[click](java\tscript:{PWN})", None),
    (f"[click](<javascript:{PWN}>)", None),
    (f"[click](&#106;avascript:{PWN})", None),
    ("[click](data:text/html;base64,PHNjcmlwdD53aW5kb3cuX19wd25lZD0xPC9zY3JpcHQ+)", None),
    (f"[click](vbscript:{PWN})", None),
    ("[click](//evil.example/)", None),
    (f'[a](https://example.org/"onmouseover="{PWN})', "a"),
    ("![x](https://evil.example/track.png)", "image: x"),
    (f"![x](javascript:{PWN})", None),
    ("![x](data:image/svg+xml,<svg/onload=alert(1)>)", None),
    (f"<javascript:{PWN}>", None),
    (f"```html\n<script>{PWN}</script>\n```", f"<script>{PWN}</script>"),
    (f'```"><script>{PWN}</script>\nx\n```', "x"),
    (f"`<script>{PWN}</script>`", f"<script>{PWN}</script>"),
    (f"| a |\n|---|\n| <img src=x onerror={PWN}> |", f"<img src=x onerror={PWN}>"),
    (f"{{{{constructor.constructor('{PWN}')()}}}} ${{{PWN}}} <%= {PWN} %>", None),
    ("\u202e<script>\u0000alert(1)</script>\u2028\u2029\x1b]8;;https://evil.example\x07\x1b[2J", None),
    (
        "__proto__ constructor prototype [x]: javascript:alert(1)\n\n[x]",
        "proto constructor prototype [x]: javascript:alert(1)[x]",
    ),
]
assert len(HOSTILE) == 40
