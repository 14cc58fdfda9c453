"""Markdown of replies: what it becomes, and that pieces make the same as the whole."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Page

RENDER = """
async pieces => {
    const { MarkdownView } = await import("/page/markdown.js");
    const root = document.createElement("div");
    const view = new MarkdownView(root);
    let text = "";
    let kept = 0;
    for (const piece of pieces) {
        const first = root.firstChild;
        view.update(text += piece);
        kept += first !== null && first === root.firstChild;
    }
    root.querySelectorAll("button").forEach(button => button.remove());
    return [root.innerHTML, kept];
}
"""

DOCUMENT = """# A *title* #

Some **bold**, *italic*, ***both***, ~~gone~~, `code`, snake_case_word and 2 * 3 * 4.
A second line, 1986\\. And https://example.org/a_b?c=d.

1. one
   - a
   - b

     more of b
2. two
  * nested by two
3. three

> quoted
> > twice
> - listed

| a | b |
|:-:|--:|
| `x` | 1 |
| y \\| z | 2 |

text before a table
c | d
--|--
1 | 2

```python
def f():

    return "<b>"  # `x`
```

~~~
unclosed **text**
"""

TABLE = (
    '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    '<thead><tr><th class="">a</th><th class="right">b</th></tr></thead>'
    '<tbody><tr><td class="">1</td><td class="right">2</td></tr></tbody></table></div>'
)
CASES = [
    ("# One\n## Two", '<h3 class="level1">One</h3><h4 class="level2">Two</h4>'),
    ("a **b *c* d** e", "<p>a <strong>b <em>c</em> d</strong> e</p>"),
    ("***x***", "<p><em><strong>x</strong></em></p>"),
    ("2 * 3 * 4 and a_b_c", "<p>2 * 3 * 4 and a_b_c</p>"),
    ("**open", "<p>**open</p>"),
    ("`` a`b ``", "<p><code>a`b</code></p>"),
    ("one\ntwo", "<p>one<br>two</p>"),
    ("def f():\n  return", "<p>def f():<br>&nbsp;&nbsp;return</p>"),
    ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n\n   b\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    ("1. a\n  - b", "<ol><li>a<ul><li>b</li></ul></li></ol>"),
    ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
    ("---", "<hr>"),
    ("|a|b|\n|-|-:|\n|1|2|", TABLE),
    ("In\n1986. A year", "<p>In<br>1986. A year</p>"),
    ("a & b < c &amp; d", "<p>a &amp; b &lt; c &amp;amp; d</p>"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text[:12] for text, _ in CASES])
def test_what_it_becomes(blank: Page, text: str, expected: str) -> None:
    assert blank.evaluate(RENDER, [text])[0] == expected


def test_links_open_apart_and_say_where(blank: Page) -> None:
    made = blank.evaluate(RENDER, ["[a **b**](https://example.org/x) and http://example.org/y."])[0]
    rest = 'target="_blank" rel="noopener noreferrer" referrerpolicy="no-referrer"'
    assert made == (
        f'<p><a href="https://example.org/x" {rest} title="https://example.org/x">a <strong>b</strong></a> and '
        f'<a href="http://example.org/y" {rest} title="http://example.org/y">http://example.org/y</a>.</p>'
    )


def test_code_keeps_its_text(blank: Page) -> None:
    made = blank.evaluate(RENDER, ["```python\nif x < 1:\n    y = 'a'\n```\nafter"])[0]
    assert "<span>python</span>" in made
    condition = '<span class="keyword">if</span> x &lt; <span class="number">1</span>:'
    assert condition + "\n    y = <span class=\"string\">'a'</span>" in made
    assert made.endswith("<p>after</p>")


@pytest.mark.parametrize("seed", range(8))
def test_pieces_make_the_same_as_the_whole(blank: Page, seed: int) -> None:
    rng = random.Random(seed)
    blocks = DOCUMENT.split("\n\n")
    rng.shuffle(blocks)
    text = rng.choice(["\n\n", "\n"]).join(blocks)
    cuts = sorted(rng.sample(range(1, len(text)), 120))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, _ = blank.evaluate(RENDER, [text])
    pieced, _ = blank.evaluate(RENDER, parts)
    assert pieced == whole


def test_finished_blocks_are_made_once(blank: Page) -> None:
    parts = ["first\n\n", "second\n", *("word " for _ in range(50))]
    assert blank.evaluate(RENDER, parts)[1] == 50  # all but the first two leave the first paragraph as it is
